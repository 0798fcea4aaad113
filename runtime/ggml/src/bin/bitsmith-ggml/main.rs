//! llama.cpp with and without bitsmith's backend: the same text, the same perplexity, and how fast.

mod bench;
mod compare;
mod engine;
mod synthetic;
mod text;

use clap::{Parser, Subcommand};
use engine::{Engine, How, Threads};
use std::path::PathBuf;
use std::process::ExitCode;

/// llama.cpp on bitsmith kernels, from ordinary GGUF files
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Continue a prompt greedily
    Generate {
        /// A GGUF file
        model: PathBuf,
        /// What to continue
        #[arg(long, default_value = "Once upon a time")]
        prompt: String,
        /// Most tokens to write
        #[arg(long, default_value_t = 100)]
        tokens: usize,
        /// Threads
        #[arg(long, default_value_t = 2)]
        threads: usize,
        /// Without the backend
        #[arg(long)]
        without: bool,
    },
    /// Check that text and perplexity are the same with the backend as without it; fails where they are not
    Compare {
        /// GGUF files
        #[arg(required = true)]
        models: Vec<PathBuf>,
        /// The text whose perplexity is computed, and whose windows start the continuations
        #[arg(long)]
        text: PathBuf,
        /// Windows of 256 tokens
        #[arg(long, default_value_t = 12)]
        windows: usize,
        /// Tokens of each continuation
        #[arg(long, default_value_t = 100)]
        tokens: usize,
        /// Largest difference of perplexities, in percent
        #[arg(long, default_value_t = 0.1)]
        percent: f64,
        /// Threads
        #[arg(long, default_value_t = 2)]
        threads: usize,
    },
    /// Time prefill and decoding with the backend and without it, in turn, in one run
    Bench {
        /// GGUF files
        #[arg(required = true)]
        models: Vec<PathBuf>,
        /// Numbers of threads
        #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
        threads: Vec<usize>,
        /// Tokens of the prompt
        #[arg(long, default_value_t = 512)]
        prompt: usize,
        /// Tokens to decode after it
        #[arg(long, default_value_t = 32)]
        tokens: usize,
        /// Rounds, of which the medians count
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Write everything as JSON
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Write a model of random weights in the shape of a Llama with a billion weights
    Synthesize {
        /// Where to write it
        folder: PathBuf,
        /// Types of the weights
        #[arg(long, value_delimiter = ',', default_values_t = ["q4_0".to_string()])]
        types: Vec<String>,
        /// What the weights are drawn from
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

fn main() -> ExitCode {
    engine::quiet();
    match run(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), String> {
    match command {
        Command::Generate { model, prompt, tokens, threads, without } => {
            let pool = Threads::new(checked(threads)?)?;
            let how = if without { How::Ggml } else { How::Bitsmith };
            let mut engine = Engine::open(&model, how, 4096, &pool)?;
            engine.set_threads(threads);
            let mut read: Vec<i32> = engine.start().into_iter().collect();
            read.extend(engine.tokens(&prompt)?);
            if read.is_empty() || read.len() > engine::BATCH as usize {
                return Err(format!("a prompt of {} tokens; accepted: 1 to {}", read.len(), engine::BATCH));
            }
            let written = text::continuation(&mut engine, &read, tokens.min(4096 - read.len()))?;
            println!("{prompt}{}", engine.text(&written.tokens));
            Ok(())
        }
        Command::Compare { models, text, windows, tokens, percent, threads } => {
            let pool = Threads::new(checked(threads)?)?;
            let content = std::fs::read(&text).map_err(|error| format!("{}: {error}", text.display()))?;
            let effort =
                compare::Effort { text: &String::from_utf8_lossy(&content), windows, tokens, percent, threads };
            let mut faults = Vec::new();
            for model in &models {
                faults.extend(compare::hold(model, &effort, &pool)?);
            }
            if faults.is_empty() { Ok(()) } else { Err(faults.join("; ")) }
        }
        Command::Bench { models, threads, prompt, tokens, rounds, json } => {
            let most = threads.iter().copied().max().ok_or("no number of threads")?;
            for &threads in &threads {
                checked(threads)?;
            }
            if prompt == 0 || prompt > 2048 || tokens == 0 || tokens > 1024 || rounds == 0 {
                return Err(format!(
                    "a prompt of {prompt} tokens, {tokens} decoded, {rounds} rounds; accepted: 1 to 2048, 1 to 1024, at least 1"
                ));
            }
            let pool = Threads::new(most)?;
            let effort = bench::Effort { threads: &threads, prompt, tokens, rounds };
            let mut rows = Vec::new();
            for model in &models {
                rows.extend(bench::hold(model, &effort, &pool)?);
            }
            let report = bench::Report::new(rows);
            print!("{}", report.table());
            match json {
                Some(path) => report.write(&path),
                None => Ok(()),
            }
        }
        Command::Synthesize { folder, types, seed } => {
            for name in &types {
                println!("{}", synthetic::write(&folder, name, seed)?.display());
            }
            Ok(())
        }
    }
}

fn checked(threads: usize) -> Result<usize, String> {
    match threads {
        1..=256 => Ok(threads),
        _ => Err(format!("{threads} threads; accepted: 1 to 256")),
    }
}
