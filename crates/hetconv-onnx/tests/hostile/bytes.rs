//! Bytes that are no model, or less of one than they say.

use super::*;

#[test]
fn truncated_anywhere() {
    let bytes = bytes();
    for length in (0..bytes.len()).step_by(97).chain(0..400.min(bytes.len())) {
        let read = import(&bytes[..length], None, &ImportOptions::default());
        assert!(read.is_err(), "the first {length} bytes were accepted");
        let _ = convert(&bytes[..length], None, &ConvertOptions::new(4));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn damaged_bytes_never_panic(at in any::<prop::sample::Index>(), byte: u8) {
        let mut bytes = bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        read_by_all(&bytes);
    }

    #[test]
    fn bytes_of_no_kind_never_panic(bytes: Vec<u8>) {
        read_by_all(&bytes);
    }
}

/// By everything that reads a file from outside.
fn read_by_all(bytes: &[u8]) {
    let _ = import(bytes, None, &ImportOptions::default());
    let _ = convert(bytes, None, &ConvertOptions::new(4));
    let _ = data_files(bytes);
    let _ = embed_external_data(bytes, ".".as_ref());
}

/// A graph and its nodes as numbers, each followed by one long field that a number is none of: nothing is copied for it.
#[test]
fn numbers_where_messages_belong() {
    for model in [&[0x38, 0x02][..], &[0x3d, 1, 2, 3, 4], &[0x3a, 0x02, 0x08, 0x02], &[0xc8, 0x01, 0x02]] {
        for bytes in [model.to_vec(), [model, &[0x12, 0x02, 0x01, 0x02]].concat()] {
            assert!(matches!(data_files(&bytes), Err(OnnxError::Decode(_))), "{bytes:x?}");
            assert!(matches!(embed_external_data(&bytes, ".".as_ref()), Err(OnnxError::Decode(_))), "{bytes:x?}");
            read_by_all(&bytes);
        }
    }
}

#[test]
fn claims_of_two_gibibytes() {
    // A length-delimited field of the model, the graph and a tensor that says it is 2 GiB long.
    for prefix in [&[][..], &[0x3a, 0x10][..], &[0x3a, 0x12, 0x2a, 0x10][..]] {
        let bytes = [prefix, &[0x4a, 0xff, 0xff, 0xff, 0xff, 0x07, 0x01]].concat();
        assert!(matches!(import(&bytes, None, &ImportOptions::default()), Err(OnnxError::Decode(_))));
        assert!(matches!(convert(&bytes, None, &ConvertOptions::new(4)), Err(OnnxError::Decode(_))));
    }
}

#[test]
fn no_graph_and_no_operator_set() {
    let graphless = ModelProto { graph: None, ..model() }.encode_to_vec();
    for bytes in [&[][..], &graphless] {
        assert!(matches!(import(bytes, None, &ImportOptions::default()), Err(OnnxError::NoGraph)));
        assert!(matches!(convert(bytes, None, &ConvertOptions::new(4)), Err(OnnxError::NoGraph)));
    }
    let found = error(|model, _| model.opset_import.clear());
    assert!(matches!(found, OnnxError::Opset { found: 0, .. }));
    for version in [-1, 7, 10, 29, i64::MAX] {
        let found = error(|model, _| model.opset_import[0].version = Some(version));
        assert!(matches!(found, OnnxError::Opset { found, .. } if found == version));
    }
}

#[test]
fn metadata_that_lies() {
    let read = |key: &str, value: &str| {
        let entry = StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) };
        let model = ModelProto { metadata_props: vec![entry], ..model() };
        import(&model.encode_to_vec(), None, &ImportOptions::default())
    };
    let layers = r#"{"conv1": {"in_channels": 3, "out_channels": 16, "arrangement": {"shifted": {"parts": 3}}},
        "conv2": {"in_channels": 16777216, "out_channels": 16777216, "arrangement": {"shifted": {"parts": 4}}}}"#;
    for value in ["", "7", "{", layers] {
        let imported = read("hetconv.layers", value).unwrap();
        // `conv1` has weights where the stated pattern has none.
        assert_eq!(imported.het_layers, ["conv2", "conv3", "conv4"]);
        imported.model.to_bytes().unwrap();
    }
    let lies = [
        ("hetconv.classes", "", "EOF"),
        ("hetconv.classes", "7", "expected a sequence"),
        ("hetconv.classes", r#"["cat", 3]"#, "expected a string"),
        ("hetconv.classes", r#"["cat", "dog"]"#, "2 class names for 10 outputs"),
        ("hetconv.normalisation", "{", "EOF"),
        ("hetconv.normalisation", r#"{"mean": [0, 0, 0]}"#, "missing field `std`"),
        ("hetconv.normalisation", r#"{"mean": [0, 0], "std": [1, 1]}"#, "each of 3 channels"),
        ("hetconv.normalisation", r#"{"mean": [0, 0, 0], "std": [1, 1, 0]}"#, "each of 3 channels"),
        ("hetconv.normalisation", r#"{"mean": [0, 0, 0], "std": [1, 1, -1]}"#, "each of 3 channels"),
    ];
    for (stated, value, said) in lies {
        match read(stated, value).map(drop).unwrap_err() {
            OnnxError::Metadata { key, reason } if key == stated && reason.contains(said) => {}
            error => panic!("{stated} {value}: {error}"),
        }
    }
}
