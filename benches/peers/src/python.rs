//! Peers that come as Python wheels: `peers.py` runs beside us and takes a line of JSON per request.

use crate::subject::Subject;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A product by a peer in a Python process.
pub struct Python {
    name: String,
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    weight_bytes: f64,
    error: f64,
}

/// The product that a peer is asked for.
#[derive(Clone, Copy)]
pub struct Product {
    pub n: usize,
    pub k: usize,
    pub m: usize,
    pub bits: u32,
    pub group: usize,
    pub copies: usize,
    pub threads: usize,
}

impl Python {
    /// Starts a peer; the error says why there is none here.
    pub fn new(python: &Path, peer: &str, product: Product) -> Result<Python, String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers.py");
        let mut child = Command::new(python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}", python.display()))?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (to, from) = pipes.ok_or("the process has no pipes")?;
        let from = BufReader::new(from);
        let mut this = Python { name: peer.into(), child, to, from, weight_bytes: 0.0, error: f64::NAN };
        let Product { n, k, m, bits, group, copies, threads } = product;
        let ready = this.ask(json!({
            "peer": peer, "n": n, "k": k, "m": m, "bits": bits, "group": group, "copies": copies, "threads": threads
        }))?;
        let number = |key: &str| ready[key].as_f64().ok_or(format!("{peer}: no `{key}` in {ready}"));
        this.weight_bytes = number("weight_bytes")?;
        this.error = number("nmse")?;
        this.name = ready["name"].as_str().unwrap_or(peer).to_string();
        Ok(this)
    }

    fn ask(&mut self, request: Value) -> Result<Value, String> {
        let mut line = String::new();
        writeln!(self.to, "{request}")
            .and_then(|()| self.to.flush())
            .and_then(|()| self.from.read_line(&mut line))
            .map_err(|error| format!("{}: {error}", self.name))?;
        let answer: Value = serde_json::from_str(&line).map_err(|error| format!("{}: `{line}`: {error}", self.name))?;
        match answer["error"].as_str() {
            Some(why) => Err(format!("{}: {why}", self.name)),
            None => Ok(answer),
        }
    }
}

impl Subject for Python {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn weight_bytes(&self) -> f64 {
        self.weight_bytes
    }

    fn run(&mut self, runs: usize) -> Result<f64, String> {
        let answer = self.ask(json!({ "runs": runs }))?;
        answer["seconds"].as_f64().ok_or(format!("{}: {answer}", self.name))
    }

    fn result(&mut self) -> Result<Option<Vec<f32>>, String> {
        Ok(None)
    }

    fn own_error(&self) -> Option<f64> {
        Some(self.error)
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        // It may have ended by itself already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
