//! Known models against the published counts, and `config.json` with its faults.

use super::*;

const LLAMA_3_8B: &str = r#"{"model_type":"llama","hidden_size":4096,"intermediate_size":14336,"num_attention_heads":32,
    "num_hidden_layers":32,"num_key_value_heads":8,"tie_word_embeddings":false,"vocab_size":128256,"head_dim":null}"#;

/// Parameters that the model cards state, in billions.
#[test]
fn parameter_counts_are_the_published_ones() {
    for (name, billions) in [
        ("llama-2-7b", 6.74),
        ("llama-2-13b", 13.02),
        ("llama-2-70b", 68.98),
        ("llama-3-8b", 8.03),
        ("llama-3-70b", 70.55),
        ("qwen3-0.6b", 0.596),
        ("qwen3-1.7b", 1.72),
        ("qwen3-4b", 4.02),
        ("qwen3-8b", 8.19),
        ("qwen3-14b", 14.77),
        ("qwen3-32b", 32.76),
        ("qwen3-30b-a3b", 30.53),
        ("mixtral-8x7b", 46.70),
        ("mixtral-8x22b", 140.62),
    ] {
        let found = ModelShape::by_name(name).unwrap().parameters() as f64 / 1e9;
        assert!((found / billions - 1.0).abs() < 2e-3, "{name}: {found} is not {billions}");
    }
    assert_eq!(MODELS.len(), 14);
}

#[test]
fn linears_have_the_known_sizes() {
    let shape = ModelShape::by_name("Llama-2-70B").unwrap();
    let find = |name: &str| shape.linears().into_iter().find(|linear| linear.name == name).unwrap();
    assert_eq!((find("k_proj").n, find("k_proj").k, find("k_proj").count), (1024, 8192, 80));
    assert_eq!((find("down_proj").n, find("down_proj").k), (8192, 28672));
    assert_eq!(find("down_proj").class, Class::Mlp);
    let qwen = ModelShape::by_name("qwen3-0.6b").unwrap();
    assert_eq!((qwen.linears()[0].n, qwen.linears()[0].k), (2048, 1024));
    let mixture = ModelShape::by_name("qwen3-30b-a3b").unwrap();
    assert_eq!(mixture.linears()[4].count, 48 * 128);
    assert_eq!(mixture.linears()[4].class, Class::Expert);
}

#[test]
fn distinct_merges_equal_sizes_and_loses_none() {
    for shape in MODELS {
        let merged: usize = shape.distinct().iter().map(|shape| shape.count).sum();
        assert_eq!(merged, shape.linears().iter().map(|linear| linear.count).sum::<usize>());
    }
    let llama = ModelShape::by_name("llama-2-7b").unwrap().distinct();
    assert_eq!(
        llama[0],
        Distinct { n: 4096, k: 4096, count: 128, names: vec!["q_proj", "k_proj", "v_proj", "o_proj"] }
    );
    assert_eq!(llama.len(), 4);
}

#[test]
fn a_config_gives_the_shape_of_the_known_model() {
    let mut shape = ModelShape::parse_config(LLAMA_3_8B, "c").unwrap();
    shape.name = Cow::Borrowed("llama-3-8b");
    assert_eq!(shape, ModelShape::by_name("llama-3-8b").unwrap());
    let moe = r#"{"model_type":"qwen3_moe","hidden_size":2048,"moe_intermediate_size":768,"intermediate_size":6144,
        "num_attention_heads":32,"num_hidden_layers":48,"num_key_value_heads":4,"head_dim":128,"vocab_size":151936,
        "num_experts":128,"num_experts_per_tok":8,"decoder_sparse_step":1,"mlp_only_layers":[]}"#;
    let mut shape = ModelShape::parse_config(moe, "c").unwrap();
    shape.name = Cow::Borrowed("qwen3-30b-a3b");
    assert_eq!(shape, ModelShape::by_name("qwen3-30b-a3b").unwrap());
    let text = ModelShape::parse_config(&moe.replace("[]", "[0]"), "c").unwrap_err().to_string();
    assert!(text.contains("`mlp_only_layers`"), "{text}");
}

#[test]
fn each_bad_field_is_named() {
    for (from, to, expected) in [
        (r#""hidden_size":4096,"#, "", "c: `hidden_size` is missing"),
        ("4096", "0", "`hidden_size` is 0; accepted: an integer from 1"),
        ("4096", "-4096", "`hidden_size` is -4096"),
        ("4096", "4096.5", "`hidden_size` is 4096.5"),
        ("4096", "99999999999999999999", "`hidden_size` is"),
        ("14336", "18446744073709551615", "`intermediate_size` is 18446744073709551615"),
        ("128256", r#""many""#, "`vocab_size` is a text"),
        (":8,", ":7,", "`num_key_value_heads` 7 does not divide"),
        ("4096", "4097", "`head_dim` is missing, and `hidden_size` 4097"),
        ("false", "1", "`tie_word_embeddings` is a number"),
        (r#""llama""#, r#""mamba""#, "`model_type` is `mamba`; accepted: llama"),
        (r#""llama""#, "3", "`model_type` is a number"),
        (r#""llama""#, r#""qwen3""#, "`head_dim` is missing"),
        ("}", "", "is not valid JSON"),
    ] {
        assert!(LLAMA_3_8B.contains(from));
        let text = ModelShape::parse_config(&LLAMA_3_8B.replacen(from, to, 1), "c").unwrap_err().to_string();
        assert!(text.contains(expected), "{from} -> {to}: {text}");
    }
    let all = ModelShape::parse_config(r#"{"model_type":"llama"}"#, "c").unwrap_err().to_string();
    assert!(all.contains("hidden_size") && all.contains("vocab_size") && all.contains("num_hidden_layers"), "{all}");
}

#[test]
fn the_largest_accepted_sizes_do_not_overflow() {
    let text = r#"{"model_type":"mixtral","hidden_size":262144,"intermediate_size":1048576,"num_attention_heads":4096,
        "num_hidden_layers":1024,"num_key_value_heads":4096,"head_dim":4096,"vocab_size":16777216,
        "num_local_experts":4096,"num_experts_per_tok":4096}"#;
    assert!(ModelShape::parse_config(text, "c").unwrap().parameters() > 1 << 61);
}

#[test]
fn an_unknown_name_lists_the_accepted_ones() {
    let text = ModelShape::resolve("gpt-5").unwrap_err().to_string();
    assert!(MODELS.iter().all(|shape| text.contains(&*shape.name)), "{text}");
}

#[test]
fn the_real_config_is_read() {
    let root = std::env::var_os("BITSMITH_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"), Into::into);
    let folder = root.join("models/tinystories-656k");
    if !folder.exists() {
        println!("skipped: the_real_config_is_read: models/tinystories-656k is not at hand");
        return;
    }
    let shape = ModelShape::resolve(folder.to_str().unwrap()).unwrap();
    assert_eq!((shape.hidden, shape.layers, shape.ffn, shape.kv_heads, shape.tied), (128, 2, 384, 4, true));
}
