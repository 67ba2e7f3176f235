//! Which source pixels a target pixel reads, and the pixels that read alike.
//!
//! Forward and grad-input are the same computation: every target pixel sums products over some taps, each of
//! which names one source pixel. Stride, padding and dilation only decide which. Target pixels with the same taps at the
//! same relative places form a [`Region`]: a 3×3 window with padding 1 has nine (corners, edges, interior), grad-input at
//! stride 2 has one for every phase. A tile of pixels from one region needs no halo, no bounds check and no
//! multiplication by a padded zero, whatever image the pixels come from.

use std::ops::Range;

use hetconv_core::Conv2dGeometry;

use crate::cache::{LINE, WAY, WAYS};
use crate::tile::MAX_ROWS;

/// For every target index of one axis, the taps that fall inside and the source index each of them reads.
pub(crate) type Axis = Vec<Vec<(usize, usize)>>;

/// Target pixels that read the same taps at the same offsets.
///
/// They lie in some rows and some columns of the image, and follow each other patch by patch.
#[derive(Clone, Debug)]
pub(crate) struct Region {
    /// Tap (row-major index in the window) and the first value of its source pixel relative to that of the first tap's.
    pub taps: Vec<(usize, isize)>,
    /// The first pixels of bands of rows.
    bands: Vec<Place>,
    /// The pixels of a band relative to its first, patch by patch: of a whole band, and of the last one if it has fewer rows.
    within: [Vec<Place>; 2],
    /// Whether so many sources of a tile fall into one set of the first-level cache that they would drive each other out.
    pub crowded: bool,
}

/// First values of the first tap's source pixel and of the target pixel, within one image.
pub(crate) type Place = (usize, usize);

/// Pixels of a region that follow each other, of one image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<'a> {
    pub image: usize,
    /// What is added to each of their places.
    pub base: Place,
    pub relative: &'a [Place],
}

impl<'a> Run<'a> {
    /// Their places in the image.
    pub fn places(self) -> impl Iterator<Item = Place> + 'a {
        let (source, target) = self.base;
        self.relative.iter().map(move |&(from, to)| (source + from, target + to))
    }
}

/// The next [`Run`]s of a region.
#[derive(Debug)]
pub(crate) struct Runs<'a> {
    region: &'a Region,
    image: usize,
    band: usize,
    /// Pixels of the band that come before.
    before: usize,
    left: usize,
}

impl<'a> Iterator for Runs<'a> {
    type Item = Run<'a>;

    #[inline(always)]
    fn next(&mut self) -> Option<Run<'a>> {
        if self.left == 0 {
            return None;
        }
        let Region { bands, within: [whole, last], .. } = self.region;
        let is_last = self.band + 1 == bands.len();
        let of_band = if is_last && !last.is_empty() { last } else { whole };
        let relative = &of_band[self.before..];
        let relative = &relative[..relative.len().min(self.left)];
        let run = Run { image: self.image, base: bands[self.band], relative };
        self.left -= relative.len();
        (self.before, self.band) = (0, if is_last { 0 } else { self.band + 1 });
        self.image += usize::from(is_last);
        Some(run)
    }
}

impl Region {
    /// Of the pixels in some rows and columns: what a row adds to the place of a pixel, and what a column does.
    fn new(taps: Vec<(usize, isize)>, rows: &[Place], columns: &[Place], image_len: usize) -> Self {
        let less = |a: Place, b: Place| (a.0 - b.0, a.1 - b.1);
        let plus = |a: Place, b: Place| (a.0 + b.0, a.1 + b.1);
        let distances = |band: &[Place]| band.iter().map(|&row| less(row, band[0])).collect::<Vec<_>>();
        // Bands of whole patches, if their rows are equally far apart in all; else of single rows.
        let height = PATCH[0] * (BAND / (PATCH[0] * columns.len())).max(1);
        let whole = rows.chunks_exact(height);
        let alike = whole.clone().zip(whole.clone().skip(1)).all(|(a, b)| distances(a) == distances(b));
        let height = if alike { height } else { 1 };
        let within = |band: &[Place]| {
            let mut within = Vec::with_capacity(band.len() * columns.len());
            for rows in distances(band).chunks(PATCH[0]) {
                for columns in columns.chunks(PATCH[1]) {
                    for &row in rows {
                        within.extend(columns.iter().map(|&column| plus(row, column)));
                    }
                }
            }
            within
        };
        let bands = rows.chunks(height).map(|band| band[0]).collect();
        let last = rows.chunks_exact(height).remainder();
        let mut region = Self {
            taps,
            bands,
            within: [rows.chunks_exact(height).next().map(within).unwrap_or_default(), within(last)],
            crowded: false,
        };
        region.crowded = region.is_crowded(image_len);
        region
    }

    /// Number of pixels of an image.
    pub fn len(&self) -> usize {
        let [whole, last] = &self.within;
        (self.bands.len() - usize::from(!last.is_empty())) * whole.len() + last.len()
    }

    /// Some of the pixels, counted image by image.
    pub fn runs(&self, pixels: Range<usize>) -> Runs<'_> {
        let (image, pixel) = (pixels.start / self.len(), pixels.start % self.len());
        let of_band = self.within[0].len();
        let band = pixel.checked_div(of_band).unwrap_or(0).min(self.bands.len() - 1);
        Runs { region: self, image, band, before: pixel - band * of_band, left: pixels.len() }
    }

    /// The places of all pixels of an image.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        self.runs(0..self.len()).flat_map(Run::places)
    }

    /// The same where a source's pixels, of which there are so many in an image, and a target's have other numbers of
    /// channels; it has one tap only, or the source's number stays.
    pub fn with_channels(&self, pixels: usize, [from, to]: [[usize; 2]; 2]) -> Self {
        assert!(self.taps.len() <= 1 || from[0] == to[0], "distances of taps are those of pixels");
        let moved = |places: &Vec<Place>| {
            places.iter().map(|&(source, target)| (source / from[0] * to[0], target / from[1] * to[1])).collect()
        };
        let mut region = Self {
            taps: self.taps.clone(),
            bands: moved(&self.bands),
            within: [moved(&self.within[0]), moved(&self.within[1])],
            crowded: false,
        };
        region.crowded = region.is_crowded(pixels * to[0]);
        region
    }

    /// Whether a tile of the first pixels, images `image_len` values apart, takes all ways of a set.
    fn is_crowded<'a>(&'a self, image_len: usize) -> bool {
        let of_run = |run: Run<'a>| {
            let first = run.image * image_len;
            run.places().map(move |(source, _)| (first + source) % WAY / LINE)
        };
        let sets: Vec<usize> = self.runs(0..MAX_ROWS).flat_map(of_run).collect();
        let sharing = |set| sets.iter().filter(|&&other| other == set).count();
        sets.iter().any(|&set| sharing(set) >= WAYS)
    }
}

/// Output index → input indices along one axis (0 vertical, 1 horizontal).
pub(crate) fn forward_axis(geometry: &Conv2dGeometry, axis: usize, input: usize, output: usize) -> Axis {
    let (kernel, stride, dilation) = (geometry.kernel[axis], geometry.stride[axis], geometry.dilation[axis]);
    let before = geometry.padding[axis];
    let reads = |o: usize| {
        let source = |k: usize| (o * stride + k * dilation).checked_sub(before).filter(|&i| i < input);
        (0..kernel).filter_map(|k| source(k).map(|i| (k, i))).collect()
    };
    (0..output).map(reads).collect()
}

/// Input index → output indices along one axis: the same pairs, seen from the other side.
pub(crate) fn backward_axis(geometry: &Conv2dGeometry, axis: usize, input: usize, output: usize) -> Axis {
    let mut reads = vec![Vec::new(); input];
    for (o, taps) in forward_axis(geometry, axis, input, output).into_iter().enumerate() {
        for (k, i) in taps {
            reads[i].push((k, o));
        }
    }
    for taps in &mut reads {
        taps.sort_unstable();
    }
    reads
}

/// Rows and columns of pixels that follow each other in a region: as a tile's pixels they share more sources than in a row.
const PATCH: [usize; 2] = [2, 6];

/// Pixels of a region's band, unless its patches are wider: a small image is one band.
const BAND: usize = 1 << 10;

/// Groups the target pixels of an image by what they read; `channels` are those of a source and of a target pixel.
pub(crate) fn regions(
    kernel_width: usize,
    rows: &Axis,
    columns: &Axis,
    [source_height, source_width]: [usize; 2],
    [source_channels, target_channels]: [usize; 2],
) -> Vec<Region> {
    let (row_groups, column_groups) = (alike(rows), alike(columns));
    let mut regions = Vec::new();
    for (row_taps, row_members) in &row_groups {
        for (column_taps, column_members) in &column_groups {
            let taps = joined(kernel_width, row_taps, column_taps, source_width, source_channels);
            let source = |pixel: usize| if taps.is_empty() { 0 } else { pixel * source_channels };
            let row = |&y: &usize| (source(first(rows, y) * source_width), y * columns.len() * target_channels);
            let column = |&x: &usize| (source(first(columns, x)), x * target_channels);
            let row_places: Vec<Place> = row_members.iter().map(row).collect();
            let column_places: Vec<Place> = column_members.iter().map(column).collect();
            let image_len = source_height * source_width * source_channels;
            regions.push(Region::new(taps, &row_places, &column_places, image_len));
        }
    }
    regions
}

/// Target pixels of one row that read the same taps, at equal distances.
#[derive(Debug)]
pub(crate) struct Stretch {
    /// Index of their [`Rows::taps`].
    pub taps: usize,
    /// The first tap's source pixel, and the target pixel's first value, for the first of them.
    pub first: [usize; 2],
    /// Source pixels, and values of the target, from one of them to the next.
    pub steps: [usize; 2],
    /// How many there are.
    pub pixels: usize,
}

/// The same as regions, row by row: for layers that read a source only once, in the order of memory. Sources are counted in
/// pixels.
#[derive(Debug)]
pub(crate) struct Rows {
    /// Lists as [`Region::taps`].
    pub taps: Vec<Vec<(usize, isize)>>,
    /// The stretches of every target row.
    pub rows: Vec<Vec<Stretch>>,
    /// The source pixels of every target row, from the first to the last.
    reads: Vec<Range<usize>>,
}

impl Rows {
    /// The target rows of an image.
    pub fn new(kernel_width: usize, rows: &Axis, columns: &Axis, source_width: usize, target_channels: usize) -> Self {
        let (row_groups, column_groups) = (alike(rows), alike(columns));
        let mut taps = Vec::new();
        let mut of_rows: Vec<Vec<Stretch>> = rows.iter().map(|_| Vec::new()).collect();
        for (row_taps, row_members) in &row_groups {
            for (column_taps, column_members) in &column_groups {
                let joined = joined(kernel_width, row_taps, column_taps, source_width, 1);
                let source =
                    |y, x| if joined.is_empty() { 0 } else { first(rows, y) * source_width + first(columns, x) };
                for &y in row_members {
                    let pixel = |&x: &usize| [source(y, x), (y * columns.len() + x) * target_channels];
                    let pixels: Vec<[usize; 2]> = column_members.iter().map(pixel).collect();
                    of_rows[y].extend(stretches(taps.len(), &pixels));
                }
                taps.push(joined);
            }
        }
        let reads = of_rows.iter().map(|stretches| reads(stretches, &taps)).collect();
        Self { taps, rows: of_rows, reads }
    }

    /// Stretches of some target rows.
    pub fn stretches(&self, rows: Range<usize>) -> usize {
        self.rows[rows].iter().map(Vec::len).sum()
    }

    /// The source pixels of some target rows, from the first to the last.
    pub fn reads(&self, rows: Range<usize>) -> Range<usize> {
        let mut all = 0..0;
        for reads in &self.reads[rows] {
            if all.is_empty() {
                all = reads.clone();
            } else if !reads.is_empty() {
                all = all.start.min(reads.start)..all.end.max(reads.end);
            }
        }
        all
    }
}

/// The source pixels of some stretches, from the first to the last.
fn reads(stretches: &[Stretch], taps: &[Vec<(usize, isize)>]) -> Range<usize> {
    let mut all: Option<Range<usize>> = None;
    for stretch in stretches {
        for &(_, offset) in &taps[stretch.taps] {
            let first = stretch.first[0].strict_add_signed(offset);
            let last = first + (stretch.pixels - 1) * stretch.steps[0];
            let known = all.get_or_insert(first..last + 1);
            *known = known.start.min(first)..known.end.max(last + 1);
        }
    }
    all.unwrap_or(0..0)
}

/// Cuts pixels where their distances change.
fn stretches(taps: usize, mut pixels: &[[usize; 2]]) -> Vec<Stretch> {
    let mut cut = Vec::new();
    while let [first, rest @ ..] = pixels {
        let distance = |a: &[usize; 2], b: &[usize; 2]| [b[0] - a[0], b[1] - a[1]];
        let steps = rest.first().map_or([0; 2], |second| distance(first, second));
        let count = 1 + pixels.windows(2).take_while(|pair| distance(&pair[0], &pair[1]) == steps).count();
        cut.push(Stretch { taps, first: *first, steps, pixels: count });
        pixels = &pixels[count..];
    }
    cut
}

/// The first source index that a target index reads.
fn first(axis: &Axis, index: usize) -> usize {
    axis[index].first().map_or(0, |&(_, source)| source)
}

/// The taps of two axes together, as in [`Region::taps`].
fn joined(
    kernel_width: usize,
    rows: &RelativeTaps,
    columns: &RelativeTaps,
    source_width: usize,
    source_channels: usize,
) -> Vec<(usize, isize)> {
    let mut taps = Vec::with_capacity(rows.len() * columns.len());
    for &(ky, dy) in rows {
        for &(kx, dx) in columns {
            taps.push((ky * kernel_width + kx, (dy * source_width as isize + dx) * source_channels as isize));
        }
    }
    taps
}

/// Taps of one axis with source offsets relative to the first of them.
type RelativeTaps = Vec<(usize, isize)>;

/// The distinct tap lists of an axis, each with the target indices that have it.
fn alike(axis: &Axis) -> Vec<(RelativeTaps, Vec<usize>)> {
    let mut groups: Vec<(RelativeTaps, Vec<usize>)> = Vec::new();
    for (index, taps) in axis.iter().enumerate() {
        let first = taps.first().map_or(0, |&(_, source)| source as isize);
        let relative: RelativeTaps = taps.iter().map(|&(k, source)| (k, source as isize - first)).collect();
        match groups.iter_mut().find(|(known, _)| *known == relative) {
            Some((_, members)) => members.push(index),
            None => groups.push((relative, vec![index])),
        }
    }
    groups
}

/// For one tap, every pair of input pixel and output pixel it joins, in the order of output pixels.
pub(crate) fn tap_pairs(
    (ky, kx): (usize, usize),
    rows: &Axis,
    columns: &Axis,
    input_width: usize,
) -> Vec<(usize, usize)> {
    let of_tap = |axis: &Axis, k: usize| -> Vec<(usize, usize)> {
        let read = |(o, taps): (usize, &Vec<(usize, usize)>)| {
            taps.iter().find(|&&(tap, _)| tap == k).map(|&(_, source)| (source, o))
        };
        axis.iter().enumerate().filter_map(read).collect()
    };
    let mut pairs = Vec::new();
    let column_pairs = of_tap(columns, kx);
    for (iy, oy) in of_tap(rows, ky) {
        for &(ix, ox) in &column_pairs {
            pairs.push((iy * input_width + ix, oy * columns.len() + ox));
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_padded_window_has_nine_regions_that_cover_every_pixel_once() {
        let geometry = Conv2dGeometry::same(3, 1);
        let (rows, columns) = (forward_axis(&geometry, 0, 5, 5), forward_axis(&geometry, 1, 4, 4));
        let regions = regions(3, &rows, &columns, [5, 4], [7, 1]);
        assert_eq!(regions.len(), 9);
        let mut targets: Vec<usize> = regions.iter().flat_map(|r| r.places().map(|p| p.1)).collect();
        targets.sort_unstable();
        assert_eq!(targets, (0..20).collect::<Vec<_>>());
        let taps: usize = regions.iter().map(|r| r.taps.len() * r.len()).sum();
        assert_eq!(taps, (2 + 3 * 3 + 2) * (2 + 3 * 2 + 2));
    }

    #[test]
    fn runs_follow_each_other_through_images() {
        let evenly = |rows: usize| (0..rows).map(|row| 5000 * row).collect::<Vec<_>>();
        // One band, bands of two rows with one left, of four rows with three left, of single rows, which are not equally
        // far apart, and a single pixel.
        let cases = [
            (evenly(5), 7, 1),
            (evenly(5), 1000, 3),
            (evenly(11), 250, 3),
            (vec![0, 5000, 9000, 40_000], 600, 4),
            (vec![5], 1, 1),
        ];
        for (rows, columns, bands) in cases {
            let rows: Vec<Place> = rows.into_iter().map(|row| (2 * row, row)).collect();
            let columns: Vec<Place> = (0..columns).map(|column| (2 * column, column)).collect();
            let region = Region::new(vec![(0, 0)], &rows, &columns, 1000);
            assert_eq!(region.bands.len(), bands);
            let all: Vec<Place> = region.places().collect();
            let mut expected: Vec<Place> =
                rows.iter().flat_map(|row| columns.iter().map(move |c| (row.0 + c.0, row.1 + c.1))).collect();
            expected.sort_unstable();
            let mut sorted = all.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, expected);
            for range in [0..0, 0..1, 3..3 * all.len(), all.len() - 1..all.len() + 1] {
                let of_run = |run: Run<'_>| run.places().map(move |place| (run.image, place)).collect::<Vec<_>>();
                let found: Vec<(usize, Place)> = region.runs(range.clone()).flat_map(of_run).collect();
                let expected: Vec<(usize, Place)> = range.map(|i| (i / all.len(), all[i % all.len()])).collect();
                assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn rows_hold_the_pixels_of_the_regions() {
        for (stride, dilation, size) in [(1, 1, [5, 7]), (2, 1, [6, 9]), (3, 2, [11, 10]), (2, 3, [9, 4])] {
            let geometry = Conv2dGeometry::square(3, stride, 2, dilation);
            let output = geometry.output_size(size).unwrap();
            let axes = |make: fn(&Conv2dGeometry, usize, usize, usize) -> Axis| {
                [0, 1].map(|axis| make(&geometry, axis, size[axis], output[axis]))
            };
            for ([rows, columns], source) in [(axes(forward_axis), size), (axes(backward_axis), output)] {
                let mut of_regions = Vec::new();
                for region in regions(3, &rows, &columns, source, [5, 5]) {
                    of_regions.extend(region.places().map(|place| (place, region.taps.clone())));
                }
                let mut of_rows = Vec::new();
                let table = Rows::new(3, &rows, &columns, source[1], 5);
                for (y, stretch) in table.rows.iter().enumerate().flat_map(|(y, row)| row.iter().map(move |s| (y, s))) {
                    let taps = &table.taps[stretch.taps];
                    for pixel in 0..stretch.pixels {
                        let [from, to] = [0, 1].map(|i| stretch.first[i] + pixel * stretch.steps[i]);
                        let reads = table.reads(y..y + 1);
                        assert!(taps.iter().all(|&(_, offset)| reads.contains(&from.strict_add_signed(offset))));
                        let taps = taps.iter().map(|&(tap, offset)| (tap, 5 * offset)).collect();
                        of_rows.push(((5 * from, to), taps));
                    }
                }
                let all = table.reads(0..table.rows.len());
                let read: Vec<Range<usize>> = (0..table.rows.len()).map(|y| table.reads(y..y + 1)).collect();
                let read = || read.iter().filter(|reads| !reads.is_empty());
                assert_eq!(read().map(|reads| reads.start).min(), Some(all.start));
                assert_eq!(read().map(|reads| reads.end).max(), Some(all.end));
                of_regions.sort();
                of_rows.sort();
                assert_eq!(of_rows, of_regions, "{geometry:?} of {size:?}");
            }
        }
    }

    #[test]
    fn backward_is_forward_seen_from_the_other_side() {
        let geometry = Conv2dGeometry::square(3, 2, 1, 2);
        let output = geometry.output_size([9, 9]).unwrap()[0];
        let forward = forward_axis(&geometry, 0, 9, output);
        let backward = backward_axis(&geometry, 0, 9, output);
        for (i, taps) in backward.iter().enumerate() {
            for &(k, o) in taps {
                assert!(forward[o].contains(&(k, i)));
            }
        }
        let count = |axis: &Axis| axis.iter().map(Vec::len).sum::<usize>();
        assert_eq!(count(&forward), count(&backward));
    }
}
