//! A HetConv layer as nodes of ONNX's standard operators.

use hetconv_core::{ChannelOrder, Conv2dGeometry};

use crate::layer::GroupedPart;
use crate::proto::AttributeProto;
use crate::writer::{Slice, Writer, int, ints};

/// One HetConv layer to be written.
pub(crate) struct Layer<'a> {
    /// The node that gives its result; helpers are named after it.
    pub name: &'a str,
    pub input: &'a str,
    pub geometry: &'a Conv2dGeometry,
    /// `[N, M, taps]` as channels and filters are stored.
    pub kernels: &'a [f32],
    pub bias: Option<&'a str>,
    /// The order in which grouped convolutions compute the stored filters: class by class.
    pub filters: &'a ChannelOrder,
}

impl Layer<'_> {
    /// N.
    fn filters(&self) -> usize {
        self.filters.len()
    }

    /// M.
    fn channels(&self) -> usize {
        self.kernels.len() / (self.filters() * self.geometry.taps())
    }

    /// One convolution over all channels.
    pub fn write_dense(&self, writer: &mut Writer) {
        let [height, width] = self.geometry.kernel;
        let dims = [self.filters(), self.channels(), height, width];
        let weight = writer.floats(&format!("{}.weight", self.name), &dims, self.kernels);
        let inputs: Vec<&str> = [self.input, &weight].into_iter().chain(self.bias).collect();
        writer.node(self.name, "Conv", &inputs, conv_attributes(self.geometry, 1));
    }

    /// `NAME.ring` + `NAME.center`: grouped convolutions side by side, and a 1×1 convolution.
    pub fn write_sum(&self, writer: &mut Writer, parts: &[GroupedPart]) {
        let name = self.name;
        let mut rings = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let part_name = if parts.len() > 1 { format!("{name}.ring{index}") } else { format!("{name}.ring") };
            let input = self.part_input(writer, &format!("{part_name}.input"), &part.channels);
            let weight = self.write_ring_weight(writer, &part_name, part);
            let attributes = conv_attributes(self.geometry, part.groups);
            rings.push(writer.helper(&part_name, "Conv", &[&input, &weight], attributes));
        }
        let mut ring = match rings.as_slice() {
            [ring] => ring.clone(),
            rings => {
                let rings: Vec<&str> = rings.iter().map(String::as_str).collect();
                writer.helper(&format!("{name}.ring"), "Concat", &rings, vec![int("axis", 1)])
            }
        };
        if !self.filters.is_natural() {
            ring = writer.gather(&format!("{name}.ring.output"), &ring, &self.filters.positions());
        }
        let center = self.write_center(writer);
        writer.node(name, "Add", &[&ring, &center], vec![]);
    }

    /// The 1×1 convolution.
    fn write_center(&self, writer: &mut Writer) -> String {
        let name = self.name;
        let weight = self.write_center_weight(writer);
        let margin = self.margin();
        let mut input = self.input.to_owned();
        let mut pointwise = self.pointwise();
        if (0..2).any(|axis| margin[axis].min(margin[axis + 2]) < 0 && margin[axis].max(margin[axis + 2]) > 0) {
            // What is cut off at one side may be all of the image, so that what is added at the other comes first.
            let [top, left, bottom, right] = margin;
            input = writer.pad(&format!("{name}.moved"), &input, &[0, 0, top, left, 0, 0, bottom, right]);
            pointwise.padding = [0; 4];
        } else if margin.iter().any(|&margin| margin < 0) {
            // Where the window's centre starts inside the image, the 1×1 convolution reads a part of it.
            let inside = |side: usize| margin[side].min(0);
            let end = |axis: usize| if inside(axis + 2) < 0 { inside(axis + 2) } else { i64::MAX };
            let crop = |axis: usize| Slice { axis: axis as i64 + 2, start: -inside(axis), end: end(axis), step: 1 };
            input = writer.slice(&format!("{name}.cropped"), &input, &[crop(0), crop(1)]);
        }
        let inputs: Vec<&str> = [input.as_str(), &weight].into_iter().chain(self.bias).collect();
        writer.helper(&format!("{name}.center"), "Conv", &inputs, conv_attributes(&pointwise, 1))
    }

    /// Stored channels by number: the input itself, a slice or a gather.
    fn part_input(&self, writer: &mut Writer, wanted: &str, channels: &[usize]) -> String {
        let contiguous = channels.windows(2).all(|pair| pair[0] + 1 == pair[1]);
        match channels {
            [first, .., last] | [first @ last] if contiguous => {
                if channels.len() == self.channels() {
                    return self.input.to_owned();
                }
                let slice = Slice { axis: 1, start: *first as i64, end: *last as i64 + 1, step: 1 };
                writer.slice(wanted, self.input, &[slice])
            }
            _ => {
                let channels: Vec<u32> = channels.iter().map(|&channel| channel as u32).collect();
                writer.gather(wanted, self.input, &channels)
            }
        }
    }

    /// `[N, M/groups, kh, kw]`, the off-centre taps of some classes; the centre taps are 0.
    pub fn write_ring_weight(&self, writer: &mut Writer, name: &str, part: &GroupedPart) -> String {
        let (taps, middle, m) = (self.geometry.taps(), self.geometry.center_tap(), self.channels());
        let (filters, channels) = (part.filters.len() / part.groups, part.channels.len() / part.groups);
        let mut data = Vec::with_capacity(part.filters.len() * channels * taps);
        for (index, &filter) in self.filters.channels()[part.filters.clone()].iter().enumerate() {
            for &channel in &part.channels[index / filters * channels..][..channels] {
                let kernel = &self.kernels[(filter as usize * m + channel) * taps..][..taps];
                data.extend(kernel.iter().enumerate().map(|(t, &tap)| if Some(t) == middle { 0.0 } else { tap }));
            }
        }
        let [height, width] = self.geometry.kernel;
        writer.floats(&format!("{name}.weight"), &[part.filters.len(), channels, height, width], &data)
    }

    /// `[N, M, 1, 1]`, the centre taps.
    pub fn write_center_weight(&self, writer: &mut Writer) -> String {
        let middle = self.geometry.center_tap().unwrap_or(0);
        let data: Vec<f32> = self.kernels.iter().skip(middle).step_by(self.geometry.taps()).copied().collect();
        writer.floats(&format!("{}.center.weight", self.name), &[self.filters(), self.channels(), 1, 1], &data)
    }

    /// How far outside the image the centre tap of the outermost windows lies, in pixels at the top, left, bottom and
    /// right; inside if negative.
    fn margin(&self) -> [i64; 4] {
        let Conv2dGeometry { kernel, padding, dilation, .. } = self.geometry;
        [0, 1, 2, 3].map(|side| padding[side] as i64 - (kernel[side % 2] / 2 * dilation[side % 2]) as i64)
    }

    /// The geometry of the 1×1 convolution.
    pub fn pointwise(&self) -> Conv2dGeometry {
        let padding = self.margin().map(|margin| margin.max(0) as usize);
        Conv2dGeometry { kernel: [1, 1], stride: self.geometry.stride, padding, dilation: [1, 1] }
    }

    /// Whether one grouped and one 1×1 convolution over the same value are all that is needed.
    pub fn is_two_convolutions(&self, part: &GroupedPart) -> bool {
        part.channels.iter().copied().eq(0..self.channels()) && self.margin().iter().all(|&margin| margin >= 0)
    }
}

/// Kernel, stride, padding and dilation.
pub(crate) fn window_attributes(geometry: &Conv2dGeometry) -> Vec<AttributeProto> {
    vec![
        ints("kernel_shape", &geometry.kernel),
        ints("strides", &geometry.stride),
        ints("pads", &geometry.padding),
        ints("dilations", &geometry.dilation),
    ]
}

/// Those and the number of groups.
pub(crate) fn conv_attributes(geometry: &Conv2dGeometry, groups: usize) -> Vec<AttributeProto> {
    let mut attributes = window_attributes(geometry);
    attributes.push(int("group", groups));
    attributes
}
