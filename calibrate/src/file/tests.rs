//! Both kinds of file through one face, on made files and, where they are at hand, on real ones.

use super::*;

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("bitsmith-model-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// A file of the optional data set, or a line that says what was skipped.
fn data(test: &str, path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("BITSMITH_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"), PathBuf::from);
    let found = Some(root.join(path)).filter(|path| path.exists());
    if found.is_none() {
        println!("skipped: {test}: {path} is not at hand");
    }
    found
}

#[test]
fn floats_of_every_width_decode() {
    let mut writer = GgufWriter::new();
    let bytes = [1.5f32, -2.0].map(f32::to_le_bytes).concat();
    writer.tensor("f32", GgufType::F32, &[2], bytes).unwrap();
    writer.tensor("f16", GgufType::F16, &[2], [1.5, -2.0].map(|v| f16::from_f64(v).to_le_bytes()).concat()).unwrap();
    writer.tensor("bf16", GgufType::BF16, &[2], [1.5, -2.0].map(|v| bf16::from_f64(v).to_le_bytes()).concat()).unwrap();
    writer.tensor("f64", GgufType::F64, &[2], [1.5f64, -2.0].map(f64::to_le_bytes).concat()).unwrap();
    writer.tensor("q8", GgufType::Q8_0, &[32], vec![0; 34]).unwrap();
    let folder = folder("floats");
    writer.write(folder.join("m.gguf")).unwrap();
    let model = ModelFile::open(&folder).unwrap();
    for name in ["f32", "f16", "bf16", "f64"] {
        assert_eq!(model.tensor_f32(name).unwrap(), [1.5, -2.0], "{name}");
    }
    let refused = model.tensor_f32("q8").unwrap_err().to_string();
    assert!(refused.contains("`q8` is Q8_0") && refused.contains("m.gguf"), "{refused}");
    assert!(model.tensor_f32("none").unwrap_err().to_string().contains("has no tensor `none`"));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn strangers_are_refused_by_what_they_are() {
    let folder = folder("strangers");
    for (name, content, expected) in [
        ("a.bin", &b"PK\x03\x04"[..], "pickle"),
        ("b.txt", b"hello world", "accepted: GGUF, safetensors"),
        ("c.gguf", b"", "ends too early"),
        ("d.safetensors", b"", "has 0 bytes"),
    ] {
        std::fs::write(folder.join(name), content).unwrap();
        let text = ModelFile::open(folder.join(name)).unwrap_err().to_string();
        assert!(text.contains(expected) && text.contains(name), "{text}");
    }
    assert!(ModelFile::open(folder.join("none")).unwrap_err().to_string().contains("cannot be read"));
    std::fs::write(folder.join("e.gguf"), b"").unwrap();
    assert!(ModelFile::open(&folder).unwrap_err().to_string().contains("name one of"));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn real_gguf_files_agree_with_the_real_safetensors() {
    let test = "real_gguf_files_agree_with_the_real_safetensors";
    let Some(base) = data(test, "models/tinystories-656k") else { return };
    let base = ModelFile::open(base).unwrap();
    assert!(base.tensors().iter().all(|tensor| tensor.dtype == FileType::SafeTensors(SafeTensorsType::F32)));
    let norm = base.tensor_f32("model.norm.weight").unwrap();
    assert_eq!(norm.len(), 128);
    for (file, kind) in [("q8_0", GgufType::Q8_0), ("q4_0", GgufType::Q4_0)] {
        let Some(path) = data(test, &format!("models/tinystories-656k-gguf/{file}.gguf")) else { return };
        let model = ModelFile::open(path).unwrap();
        assert_eq!(model.tensor_f32("output_norm.weight").unwrap(), norm);
        let down = model.tensor("blk.1.ffn_down.weight").unwrap();
        assert_eq!((down.shape, down.dtype), (&[128, 384][..], FileType::Gguf(kind)));
        assert_eq!(down.data.len(), 128 * 384 / 32 * kind.block_bytes());
        let ModelFile::Gguf(gguf) = &model else { panic!("{file} is GGUF") };
        assert_eq!(gguf.get("llama.block_count").and_then(Value::as_u64), Some(2));
    }
}

#[test]
fn real_quantized_models_open() {
    for name in ["ct-fp8-dynamic", "ct-w4a16-g64-sym", "ct-w8a8-int8", "gptq-w4-g32-sym", "gptq-w4-g64-asym"] {
        let Some(path) = data("real_quantized_models_open", &format!("models/tinystories-656k-quant/{name}")) else {
            return;
        };
        let model = ModelFile::open(path).unwrap();
        let ModelFile::SafeTensors(file) = &model else { panic!("{name} is safetensors") };
        assert!(file.config().is_some_and(|config| config["quantization_config"].is_object()), "{name}");
        assert!(model.tensors().len() > 20, "{name}");
        if name == "ct-fp8-dynamic" {
            let refused = model.tensor_f32("model.layers.0.mlp.down_proj.weight").unwrap_err().to_string();
            assert!(refused.contains("F8_E4M3"), "{refused}");
        }
    }
}
