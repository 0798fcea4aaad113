//! Files as a whole: tied embeddings, shards, tensors that are missing.

use super::{QUERY, config, floats, read, singles, write};
use bitsmith_calibrate::engine::{Activations, Dense, Engine};
use bitsmith_calibrate::import::Checkpoint;
use safetensors::Dtype;
use serde_json::{Value, json};

#[test]
fn tied_embeddings_may_have_either_name() {
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        let folder = tempfile::tempdir().unwrap();
        let mut tensors = floats(8, 16);
        tensors.push((format!("{QUERY}.weight"), Dtype::F32, vec![8, 16], singles(&[0.1; 128])));
        let embedding: Vec<f32> = (0..64).map(|i| (i as f32 * 0.37).sin()).collect();
        tensors[0] = (name.into(), Dtype::F32, vec![4, 16], singles(&embedding));
        write(&folder.path().join("model.safetensors"), &tensors);
        std::fs::write(folder.path().join("config.json"), config(8, 16).to_string()).unwrap();
        let model = Checkpoint::open(folder.path()).unwrap().model().unwrap();
        assert!(model.head.is_none() && model.embedding.name == "model.embed_tokens", "{name}");
        let logits = Engine::new(&model, &Dense { activations: Activations::Floats }).unwrap().logits(&[1, 2]).unwrap();
        assert!(logits.iter().all(|x| x.is_finite()) && logits.len() == 8);
    }
}

#[test]
fn a_shard_that_is_missing_or_holds_other_tensors_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = floats(8, 16);
    tensors.push((format!("{QUERY}.weight"), Dtype::F32, vec![8, 16], singles(&[0.1; 128])));
    let (first, second) = tensors.split_at(4);
    let place = |at: usize| format!("model-0000{at}-of-00002.safetensors");
    write(&folder.path().join(place(1)), first);
    let mut places = serde_json::Map::new();
    for (at, list) in [(1, first), (2, second)] {
        list.iter().for_each(|(name, ..)| _ = places.insert(name.clone(), place(at).into()));
    }
    std::fs::write(folder.path().join("config.json"), config(8, 16).to_string()).unwrap();
    let index = |places: &serde_json::Map<String, Value>| {
        let text = json!({ "metadata": {}, "weight_map": places }).to_string();
        std::fs::write(folder.path().join("model.safetensors.index.json"), text).unwrap();
    };
    index(&places);
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains(&place(2)), "{error}");
    write(&folder.path().join(place(2)), &second[1..]);
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains(&second[0].0) && error.contains(&place(2)), "{error}");
    write(&folder.path().join(place(2)), second);
    Checkpoint::open(folder.path()).unwrap().model().unwrap();
    // A tensor that the index forgets is still found in the shard that holds it.
    places.remove(&second[0].0);
    index(&places);
    Checkpoint::open(folder.path()).unwrap().model().unwrap();
}

#[test]
fn a_missing_tensor_is_named_with_its_layer() {
    let error = read(8, 16, Value::Null, &[]).unwrap_err();
    assert!(error.contains(&format!("{QUERY}.weight")), "{error}");
}
