//! A convolution prepared for inference.

use hetconv_core::Activation;

use crate::aligned::Shared;
use crate::cache;
use crate::conv::{Algorithm, Conv, PackedForm};
use crate::fresh::product;
use crate::isa::Isa;
use crate::kernel::{Kernel, Pass, Share};
use crate::pack::Direction;
use crate::parallel::{Band, Target};
use crate::taps::Region;
use crate::team::Team;
use crate::tile::MAX_ROWS;
use crate::winograd;

/// A convolution with its weights, bias and activation, packed for one instruction set; see [`Conv::prepare`].
///
/// Running it allocates nothing. Several threads may run one at the same time, each with a scratch of its own.
#[derive(Debug)]
pub struct Prepared {
    conv: Conv,
    isa: Isa,
    algorithm: Algorithm,
    form: PackedForm,
    /// In stored order.
    bias: Vec<f32>,
    activation: Option<Activation>,
    /// Whole-vector products of an image, roughly.
    products: f64,
    wider: Option<Wider>,
}

/// Pixels with more channels than the layer's own.
#[derive(Debug)]
struct Wider {
    /// Channels of a pixel of the source, and of the target.
    pitches: [usize; 2],
    /// The first of the target's that is written.
    first: usize,
    /// What the direct pass reads and writes then.
    regions: Vec<Region>,
}

/// How a pass is split: into bands of pixels, and by groups of blocks.
#[derive(Clone, Copy)]
struct Split {
    bands: usize,
    groups: usize,
    /// Whether the bands of a group follow each other, rather than the groups of a band: neighbouring parts go to the same
    /// thread.
    by_group: bool,
}

impl Split {
    const NONE: Self = Self { bands: 1, groups: 1, by_group: false };

    fn parts(self) -> usize {
        self.bands * self.groups
    }

    /// Band and group of a part.
    fn part(self, index: usize) -> [Band; 2] {
        let (band, group) = match self.by_group {
            true => (index % self.bands, index / self.bands),
            false => (index / self.groups, index % self.groups),
        };
        [Band { index: band, count: self.bands }, Band { index: group, count: self.groups }]
    }
}

/// Products that are worth a part of their own: some five microseconds.
const LEAST: f64 = 20_000.0;
/// Parts of a pass at most.
const MOST: usize = 16;
/// Values of weights that a core's second-level cache keeps beside the activations.
const NEAR: usize = cache::SECOND / 2;

/// What is added to a convolution's results.
#[derive(Clone, Copy, Debug)]
pub enum Residual<'a> {
    /// These values, laid out as the target.
    Values(&'a [f32]),
    /// What stands in the target.
    Target,
}

impl Residual<'_> {
    /// Whether it stands in the target.
    pub(crate) fn is_target(&self) -> bool {
        matches!(self, Self::Target)
    }
}

/// The activations of a batch, channels in the orders of the [`ConvSpec`](crate::ConvSpec).
#[derive(Debug)]
pub struct PreparedBatch<'a> {
    /// How many images it has.
    pub images: usize,
    /// What is read, `[images, height, width, M]`, or pixels of as many channels as [`Prepared::pitches`] says.
    pub source: &'a [f32],
    /// What is added before the activation.
    pub residual: Option<Residual<'a>>,
    /// What is written, `[images, out height, out width, N]`, or pixels of as many channels.
    pub target: &'a mut [f32],
}

impl Prepared {
    pub(crate) fn new(
        conv: Conv,
        isa: Isa,
        algorithm: Algorithm,
        form: PackedForm,
        bias: Vec<f32>,
        activation: Option<Activation>,
    ) -> Self {
        let products = match &form {
            PackedForm::Winograd(weights) => conv.winograd_cost(&weights.layout, Direction::Forward, isa),
            PackedForm::Direct(weights) => conv.direct_cost(&weights.layout, Direction::Forward, isa),
            // A vector is read for every product.
            PackedForm::Depthwise(_) => 2.0 * conv.executed_macs() as f64 / isa.lanes() as f64,
        };
        Self { conv, isa, algorithm, form, bias, activation, products, wider: None }
    }

    /// The same, writing its outputs as the channels from `first` on of pixels that have `pitch` of them; the others are
    /// left as they are. A residual is laid out as the target, and there is none unless the segment begins the pixel.
    ///
    /// # Panics
    /// If the pixels are too narrow, or the convolution is depthwise.
    #[must_use]
    pub fn into_segment(self, pitch: usize, first: usize) -> Self {
        let channels = self.conv.spec().out_channels;
        assert!(first.checked_add(channels).is_some_and(|end| end <= pitch), "a segment of a pixel");
        let [source, _] = self.pitches();
        self.with_pitches([source, pitch], first)
    }

    /// The same, reading pixels that have `pitch` channels, the first of which are its own.
    ///
    /// # Panics
    /// If the pixels are too narrow, or the convolution is none of 1×1 that is computed directly.
    #[must_use]
    pub fn reading_wider(self, pitch: usize) -> Self {
        assert!(pitch >= self.conv.spec().in_channels, "a pixel's channels");
        assert!(self.algorithm == Algorithm::Direct, "read by the direct algorithm");
        let ([_, target], first) = (self.pitches(), self.wider.as_ref().map_or(0, |wider| wider.first));
        self.with_pitches([pitch, target], first)
    }

    /// Brings the weights of several convolutions together in memory, in the order in which they are run: in large pages,
    /// of which the CPU looks up fewer, many layers share one.
    pub fn gather<'a>(convolutions: impl Iterator<Item = &'a mut Self>) {
        Shared::gather(&mut convolutions.map(|prepared| prepared.form.weights()).collect::<Vec<_>>());
    }

    fn with_pitches(mut self, pitches: [usize; 2], first: usize) -> Self {
        self.wider = None;
        let own = self.pitches();
        let regions = match self.kernel() {
            Kernel::Direct(direct) => {
                let of_image = direct.source_pixels;
                direct.regions.iter().map(|region| region.with_channels(of_image, [own, pitches])).collect()
            }
            Kernel::Winograd(_) => Vec::new(),
            Kernel::Depthwise(_) => panic!("a depthwise convolution writes whole pixels"),
        };
        self.wider = Some(Wider { pitches, first, regions });
        self
    }

    /// The convolution's shape.
    pub fn conv(&self) -> &Conv {
        &self.conv
    }

    /// How it is computed.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// MACs of one image that its algorithm carries out: none on padding, and with Winograd's those of the transformed
    /// domain. Zeros of the layout are not counted.
    pub fn executed_macs(&self) -> usize {
        match self.kernel() {
            Kernel::Winograd(winograd) => winograd.macs(),
            _ => self.conv.executed_macs(),
        }
    }

    /// Channels of a pixel of the source, and of the target.
    pub fn pitches(&self) -> [usize; 2] {
        let spec = self.conv.spec();
        self.wider.as_ref().map_or([spec.in_channels, spec.out_channels], |wider| wider.pitches)
    }

    /// Values of the packed weights and the bias.
    pub fn packed_len(&self) -> usize {
        let weights = match &self.form {
            PackedForm::Depthwise(packed) => packed.len(),
            PackedForm::Direct(weights) => weights.len(),
            PackedForm::Winograd(weights) => weights.len(),
        };
        weights + self.bias.len()
    }

    /// Values of the scratch that each thread needs for so many images.
    pub fn scratch_len(&self, images: usize) -> usize {
        let kernel = self.kernel();
        let of_split = |split: Split| {
            let parts = (0..split.parts()).map(|part| {
                let [band, group] = split.part(part);
                kernel.scratch_len(group.of(kernel.blocks()), images, band)
            });
            parts.max().unwrap_or(0)
        };
        of_split(Split::NONE).max(of_split(self.split(images)))
    }

    /// act(convolution + bias + residual), into the target. Each thread of the team takes parts that depend on the shape alone,
    /// so the results do not depend on the team. Weights that the layer which is run `next` reads first are brought near.
    ///
    /// # Panics
    /// If a length does not fit, or there are fewer scratches than threads or one of them is too small.
    pub fn run<S: AsMut<[f32]> + Send>(
        &self,
        team: &Team,
        scratch: &mut [S],
        batch: PreparedBatch<'_>,
        next: Option<&Prepared>,
    ) {
        let images = batch.images;
        let pass = self.pass(batch);
        let split = self.split(images);
        let next = next.map(|next| (next, next.split(images)));
        team.each(split.parts(), scratch, |part, scratch| {
            let ahead = match team.last_of(part, split.parts()) {
                Some(thread) => {
                    next.map(|(next, split)| next.first_weights(images, split, team.first(thread, split.parts())))
                }
                None if split.part(part)[1] == split.part(part + 1)[1] => None,
                None => Some(self.first_weights(images, split, part + 1)),
            };
            let pass = Pass { ahead: ahead.unwrap_or_default(), begun: true, ..pass };
            // SAFETY: each part is computed once.
            unsafe { self.part(split.part(part), pass, scratch.as_mut()) };
        });
    }

    /// As [`Prepared::run`], on this thread and in one part.
    ///
    /// # Panics
    /// As [`Prepared::run`].
    pub fn run_alone(&self, scratch: &mut [f32], batch: PreparedBatch<'_>) {
        let pass = self.pass(batch);
        // SAFETY: the only part.
        unsafe { self.part([Band::WHOLE; 2], pass, scratch) };
    }

    /// The activations, after a look at all lengths.
    fn pass<'a>(&self, batch: PreparedBatch<'a>) -> Pass<'a> {
        let PreparedBatch { images, source, residual, target } = batch;
        let (pitches, first) = (self.pitches(), self.wider.as_ref().map_or(0, |wider| wider.first));
        let sizes = [self.conv.in_size(), self.conv.out_size()];
        let [source_len, target_len] = [0, 1].map(|i| product([images, sizes[i][0], sizes[i][1], pitches[i]]));
        assert_eq!(source.len(), source_len, "length of the source");
        assert_eq!(target.len(), target_len, "length of the target");
        assert!(residual.is_none() || first == 0, "a residual of a segment further on");
        let target = Target(target[first.min(target_len)..].as_mut_ptr());
        if let Some(Residual::Values(values)) = residual {
            assert_eq!(values.len(), target_len, "length of the residual");
        }
        Pass { residual, ..Pass::new(images, source, target) }
    }

    fn kernel(&self) -> Kernel<'_> {
        let mut kernel = self.conv.kernel(Direction::Forward, &self.form, &self.bias, self.activation);
        if let Some(Wider { pitches: [source, target], regions, .. }) = &self.wider {
            match &mut kernel {
                Kernel::Direct(direct) => {
                    (direct.regions, direct.source_channels, direct.target_channels) = (regions, *source, *target);
                }
                Kernel::Winograd(winograd) => winograd.target_channels = *target,
                Kernel::Depthwise(_) => unreachable!("no pixels of it are wider"),
            }
        }
        kernel
    }

    /// The weights that a part of so many images reads first.
    fn first_weights(&self, images: usize, split: Split, part: usize) -> &[f32] {
        let [_, group] = split.part(part);
        match &self.form {
            PackedForm::Depthwise(packed) => packed,
            PackedForm::Direct(weights) => {
                let [source_len, _] = self.kernel().lens();
                weights.first(&group.of(weights.layout.blocks.len()), images * source_len)
            }
            PackedForm::Winograd(weights) => weights.first(&group.of(weights.layout.blocks.len())),
        }
    }

    /// One part of a [`Prepared::pass`]; other parts write other values of the target.
    ///
    /// # Safety
    /// Nobody else computes it meanwhile.
    unsafe fn part(&self, [band, group]: [Band; 2], pass: Pass<'_>, scratch: &mut [f32]) {
        let kernel = self.kernel();
        let share = Share { band, blocks: group.of(kernel.blocks()), moments: None };
        // SAFETY: `pass` checked the lengths; the rest is the caller's.
        unsafe { kernel.compute(self.isa, pass, share, scratch) };
    }

    /// The split for so many images. Where the weights are too large to be read by every part, parts share the source
    /// instead.
    fn split(&self, images: usize) -> Split {
        // Powers of two come out even on two and four threads.
        let even = |count: usize| count.checked_ilog2().map_or(1, |log| 1 << log);
        let parts = even((self.products * images as f64 / LEAST).min(MOST as f64) as usize);
        // Whichever of the two is read by every part should be the smaller one.
        let far = self.packed_len() > NEAR;
        let of = |most_bands: usize, most_groups: usize| {
            let (most_bands, most_groups) = (even(most_bands), most_groups.max(1));
            match far {
                true => {
                    let groups = parts.min(most_groups);
                    Split { bands: even(parts / groups).min(most_bands), groups, by_group: true }
                }
                false => {
                    let bands = parts.min(most_bands);
                    Split { bands, groups: (parts / bands).clamp(1, most_groups), by_group: false }
                }
            }
        };
        match &self.form {
            PackedForm::Depthwise(_) => of(parts, 1),
            PackedForm::Direct(weights) => {
                let [height, width] = self.conv.out_size();
                of((images * height * width).div_ceil(4 * MAX_ROWS), weights.layout.blocks.len())
            }
            PackedForm::Winograd(weights) => {
                let blocks = &weights.layout.blocks;
                let pieces = images * winograd::pieces(self.conv.out_size());
                // Every group transforms what its blocks read: eight vectors of outputs are worth it. Every band reads its
                // groups' weights: if they are far, many pieces are.
                let vectors: usize = blocks.iter().map(|block| block.vectors).sum();
                let least = if far { winograd::MANY_PIECES } else { MAX_ROWS };
                of(pieces / least, (vectors / 8).max(2).min(blocks.len()))
            }
        }
    }
}
