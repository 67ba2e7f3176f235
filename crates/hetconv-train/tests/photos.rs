//! Photos of any size: looked at in parts, decoded when they are wanted, held out where there is no test split.

use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;
use std::sync::Arc;

use hetconv_train::{
    Augment, Batch, BatchLoader, DataError, Dataset, LoadOptions, LoaderError, PixelTable, Position, TrainingBatches,
    fill_batch,
};
use image::{DynamicImage, ImageFormat, RgbImage};

/// A photo whose red says how far right and whose green how far down a pixel is, and whose blue which photo it is.
fn photo(number: u8, width: u32, height: u32, format: ImageFormat) -> Vec<u8> {
    let rgb = RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([(x * 256 / width) as u8, (y * 256 / height) as u8, 20 * number])
    });
    encode(&rgb.into(), format)
}

fn encode(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Ten photos of different sizes, two of each of five classes, below one folder and without splits.
fn files() -> Vec<(String, Vec<u8>)> {
    let file = |i: u8| {
        let format = if i.is_multiple_of(3) { ImageFormat::Jpeg } else { ImageFormat::Png };
        (format!("photos/n{:02}/{i}.jpg", i / 2), photo(i, 40 + 7 * u32::from(i), 90 - 5 * u32::from(i), format))
    };
    (0..10).map(file).collect()
}

fn write(root: &Path, files: &[(String, Vec<u8>)]) {
    for (name, bytes) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

fn zip(path: &Path, files: &[(String, Vec<u8>)]) {
    let mut zip = zip::ZipWriter::new(fs::File::create(path).unwrap());
    for (name, bytes) in files {
        zip.start_file(name.as_str(), zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

fn options(hold_out: u8) -> LoadOptions {
    LoadOptions { image_size: Some(16), hold_out: Some(hold_out), ..Default::default() }
}

fn open(path: &Path, options: &LoadOptions) -> Result<Dataset, DataError> {
    Dataset::open(path.to_str().unwrap(), options)
}

fn train(data: &Dataset, start: Position) -> Vec<Batch> {
    let batches = TrainingBatches { batch_size: 3, augment: Augment::usual(&data.train), seed: 5, start, epochs: 3 };
    let loader = BatchLoader::training(data.train.clone(), &data.train.normalisation(), batches).unwrap();
    loader.map(Result::unwrap).collect()
}

#[test]
fn a_share_is_held_out_of_folders_and_archives_alike() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), &files());
    let archive = root.path().join("photos.zip");
    zip(&archive, &files());
    for path in [root.path().join("photos"), root.path().to_owned(), archive] {
        let data = open(&path, &options(20)).unwrap();
        assert_eq!(data.classes, ["n00", "n01", "n02", "n03", "n04"]);
        // Every fifth of ten.
        assert_eq!(data.test.labels(), [2, 4]);
        assert_eq!(data.train.labels(), [0, 0, 1, 1, 2, 3, 3, 4]);
        assert_eq!((data.train.shape(), data.train.images()), ([16, 16, 3], None));
        // Blue says which it is: 4 and 9 are held out, as PNG and as JPEG.
        let blue = |i: usize| data.test.image(i).unwrap()[2];
        assert!(blue(0) == 80 && blue(1).abs_diff(180) < 4, "{} {}", blue(0), blue(1));
    }
}

#[test]
fn a_share_is_held_out_only_where_it_can_be() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("photos.zip");
    zip(&path, &files());
    let error = open(&path, &LoadOptions { image_size: Some(16), ..Default::default() }).map(drop).unwrap_err();
    assert!(matches!(error, DataError::UnknownLayout { .. }), "{error}");
    assert!(error.to_string().contains("--hold-out"), "{error}");
    for percent in [0, 5, 100] {
        let error = open(&path, &options(percent)).map(drop).unwrap_err();
        assert!(matches!(error, DataError::HoldOut { images: 10, percent: p } if p == percent), "{error}");
    }
    // Below train/ it works as well, but not where there are test images.
    let mut split: Vec<_> =
        files().into_iter().map(|(name, bytes)| (name.replace("photos/", "train/"), bytes)).collect();
    zip(&path, &split);
    assert_eq!(open(&path, &options(20)).unwrap().test.labels(), [2, 4]);
    split.push(("val/n00/x.jpg".into(), split[0].1.clone()));
    zip(&path, &split);
    let error = open(&path, &options(20)).map(drop).unwrap_err();
    assert!(matches!(error, DataError::AlreadySplit { .. }), "{error}");
    let error = Dataset::open("synthetic", &options(20)).map(drop).unwrap_err();
    assert!(matches!(error, DataError::AlreadySplit { .. }), "{error}");
    // Nor where a class of the training images is empty: its folder is no class itself.
    split.push(("train/empty/".into(), Vec::new()));
    zip(&path, &split);
    let error = open(&path, &options(20)).map(drop).unwrap_err();
    assert!(matches!(error, DataError::AlreadySplit { .. }), "{error}");
    split.retain(|(name, _)| !name.starts_with("val/"));
    zip(&path, &split);
    let error = open(&path, &options(20)).map(drop).unwrap_err();
    assert!(matches!(&error, DataError::EmptyClass { folder } if folder.ends_with("train/empty")), "{error}");
    // A class may be called so.
    let vehicles: Vec<_> =
        files().into_iter().map(|(name, bytes)| (name.replace("photos/n03/", "photos/train/"), bytes)).collect();
    zip(&path, &vehicles);
    assert_eq!(open(&path, &options(20)).unwrap().classes, ["n00", "n01", "n02", "n04", "train"]);
}

#[test]
fn evaluation_sees_the_middle() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), &files());
    let data = open(root.path(), &options(20)).unwrap();
    // Photo 4 is 68 wide and 70 high: of 59.5 pixels in the middle the first begins at 4.25, its centre is at 6.1 pixels.
    let bytes = data.test.image(0).unwrap();
    let (red, green) = (f64::from(bytes[0]), f64::from(bytes[1]));
    assert!((red - 6.1 * 256.0 / 68.0).abs() < 5.0 && (green - 7.1 * 256.0 / 70.0).abs() < 5.0, "{red} {green}");
    // ImageNet's normalisation.
    let table = PixelTable::new(&data.train.normalisation());
    let mut out = vec![0.0; 2 * 16 * 16 * 3];
    fill_batch(&data.test, &[1, 0], &Augment::NONE, &table, 0, 0, &mut out).unwrap();
    let expected = (f64::from(bytes[0]) / 255.0 - 0.485) / 0.229;
    assert!((f64::from(out[16 * 16 * 3]) - expected).abs() < 1e-5);
}

#[test]
fn training_sees_other_parts_in_every_epoch_and_mirrors_half_of_them() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), &files());
    let data = open(root.path(), &options(20)).unwrap();
    let table = PixelTable::new(&data.train.normalisation());
    let (mut mirrored, mut lefts) = (0, Vec::new());
    for epoch in 0..40 {
        let mut out = vec![0.0; 16 * 16 * 3];
        fill_batch(&data.train, &[1], &Augment::usual(&data.train), &table, 1, epoch, &mut out).unwrap();
        let red = |x: usize| out[(8 * 16 + x) * 3];
        mirrored += usize::from(red(0) > red(15));
        lefts.push((red(0).min(red(15)) * 1e4) as i32);
    }
    assert!((10..=30).contains(&mirrored), "{mirrored} of 40");
    lefts.sort_unstable();
    lefts.dedup();
    assert!(lefts.len() > 20, "{lefts:?}");
}

#[test]
fn loaders_go_on_from_any_position_and_give_the_same_on_any_number_of_threads() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("photos.zip");
    zip(&path, &files());
    let data = Arc::new(open(&path, &options(20)).unwrap());
    let all = train(&data, Position::default());
    assert_eq!(all.len(), 3 * 2);
    for (n, batch) in all.iter().enumerate() {
        assert_eq!(train(&data, batch.position), all[n..]);
    }
    for threads in [1, 16] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let data = data.clone();
        assert_eq!(pool.install(move || train(&data, Position::default())), all);
    }
}

#[test]
fn images_are_the_same_at_any_size_and_in_memory() {
    let root = tempfile::tempdir().unwrap();
    let files: Vec<_> = (0..10u8).map(|i| (format!("n{}/{i}.png", i / 2), photo(i, 8, 8, ImageFormat::Png))).collect();
    write(root.path(), &files);
    let of = |options: LoadOptions| open(root.path(), &options).unwrap().digests();
    let seen = of(options(20));
    assert_ne!(seen[0], seen[1]);
    for image_size in [None, Some(8), Some(32)] {
        assert_eq!(of(LoadOptions { image_size, ..options(20) }), seen, "{image_size:?}");
    }
    // Fewer to learn from are others, but those that are held out stay the same.
    let fewer = of(LoadOptions { limit_train: Some(5), ..options(20) });
    assert!(fewer[0] != seen[0] && fewer[1] == seen[1]);
    write(root.path(), &[("n0/00.png".into(), photo(1, 8, 8, ImageFormat::Png))]);
    let more = of(options(20));
    assert!(more[0] != seen[0] && more[1] != seen[1]);
    // Of another class, too.
    fs::remove_file(root.path().join("n0/00.png")).unwrap();
    fs::create_dir(root.path().join("n")).unwrap();
    fs::rename(root.path().join("n0/0.png"), root.path().join("n/0.png")).unwrap();
    assert_ne!(of(options(20))[0], seen[0]);
}

#[test]
fn what_is_no_photo_is_named_when_it_is_looked_at() {
    let root = tempfile::tempdir().unwrap();
    let photo = photo(3, 64, 64, ImageFormat::Jpeg);
    let mut huge = encode(&DynamicImage::new_rgb8(4, 4), ImageFormat::Bmp);
    huge[18..26].copy_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1]);
    for (i, bad) in
        [b"not a photo".to_vec(), photo[..photo.len() / 2].to_vec(), huge, Vec::new()].into_iter().enumerate()
    {
        let path = root.path().join(format!("{i}.zip"));
        let mut files = files();
        // Not the first of its class, whose header is read at once.
        files[3].1 = bad;
        zip(&path, &files);
        let data = open(&path, &options(20)).unwrap();
        let batches = TrainingBatches {
            batch_size: 8,
            augment: Augment::IMAGENET,
            seed: 1,
            start: Position::default(),
            epochs: 1,
        };
        let mut loader = BatchLoader::training(data.train.clone(), &data.train.normalisation(), batches).unwrap();
        let error = loader.next().unwrap().unwrap_err();
        assert!(
            matches!(&error, LoaderError::Data(DataError::NotAnImage { file, .. }) if file.ends_with("zip:photos/n01/3.jpg")),
            "{i}: {error}"
        );
        assert!(loader.next().is_none());
        assert!(matches!(data.train.image(3), Err(DataError::NotAnImage { .. })));
    }
}

#[test]
fn grey_photos_have_one_channel_unless_some_class_has_colours() {
    let root = tempfile::tempdir().unwrap();
    let grey = |i: u8| encode(&image::GrayImage::from_pixel(30, 20, image::Luma([10 * i])).into(), ImageFormat::Png);
    let mut files: Vec<_> = (0..10u8).map(|i| (format!("{}/{i}.png", i / 2), grey(i))).collect();
    write(root.path(), &files);
    let data = open(root.path(), &options(20)).unwrap();
    assert_eq!((data.train.shape(), data.train.normalisation().mean.len()), ([16, 16, 1], 1));
    assert!(data.train.image(1).unwrap().iter().all(|&value| value == 10));
    // What comes before the image may be of any length.
    let profile = [&[0xff, 0xe2, 0xff, 0xff][..], &[7; 0xfffd]].concat();
    let in_colours = photo(3, 20, 20, ImageFormat::Jpeg);
    files[6].1 = [&in_colours[..2], &profile, &profile, &in_colours[2..]].concat();
    write(root.path(), &files);
    let data = open(root.path(), &options(20)).unwrap();
    assert_eq!(data.train.shape(), [16, 16, 3]);
    assert_eq!(data.train.image(1).unwrap()[..3], [10; 3]);
}
