//! Links a bundle into a C program, which includes its header, and compares what the program computes.

use bitsmith_autotune::problem::{Problem, Sample};
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::op::{Activation, Epilogue, Matmul, Op};
use bitsmith_compiler::schedule::Family;
use bitsmith_tests::cli::ok;
use std::fs;
use std::path::Path;
use std::process::Command;

const PROGRAM: &str = r#"
#include "bitsmith_kernels.h"
#include <stdio.h>
#include <stdlib.h>

static void *load(const char *path, size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    FILE *file = fopen(path, "rb");
    if (!memory || !file || fread(memory, 1, bytes, file) != bytes || fgetc(file) != EOF) {
        fprintf(stderr, "%s has not %zu bytes\n", path, bytes);
        exit(1);
    }
    fclose(file);
    return memory;
}

int main(void)
{
    int32_t m = ROWS;
    uint16_t *x = load("x.bin", (size_t)m * K * 2);
    uint8_t *w = load("w.bin", NAME(_PACKED_BYTES));
    uint16_t *y = aligned_alloc(64, ((size_t)m * N * 2 + 63) / 64 * 64);
    void *scratch = aligned_alloc(64, (NAME(_SCRATCH_BYTES) + 63) / 64 * 64 + 64);
    uint64_t args[NAME(_ARGS)];
    uint64_t total = NAME(_prepare)(args, x, w, y, m);
    /* In two parts, as two threads would. */
    NAME()(args, scratch, total / 2, total);
    NAME()(args, scratch, 0, total / 2);
    FILE *file = fopen("y.bin", "wb");
    return !file || fwrite(y, 2, (size_t)m * N, file) != (size_t)m * N || fclose(file);
}
"#;

/// Generates a bundle into a folder, links it, runs it for 1 and 19 rows.
pub fn link_and_run(folder: &Path) -> Result<(), String> {
    let (n, k) = (64, 160);
    let bundle = folder.join("bundle");
    let out = bundle.display().to_string();
    ok(&["generate", "--recipe", "W4A16", "--shapes", &format!("{n}x{k}"), "--no-measure", "--out", &out]);
    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(bundle.join("manifest.json")).unwrap()).unwrap();
    let op = Op::Matmul(Matmul {
        n,
        k,
        weight: "int4-g128".parse().unwrap(),
        activation: Activation::Float(DType::F16),
        out: DType::F16,
        epilogue: Epilogue::default(),
    });
    fs::write(folder.join("main.c"), PROGRAM).unwrap();
    let kernels: Vec<_> = manifest["targets"][0]["kernels"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|kernel| kernel["op"] == "matmul")
        .collect();
    assert_eq!(kernels.len(), 2);
    for (kernel, m) in kernels.iter().flat_map(|kernel| [(kernel, 1), (kernel, 19)]) {
        let problem = Problem::random(&op, m, 5).unwrap();
        for (name, buffer) in ["x.bin", "w.bin"].iter().zip(&problem.buffers) {
            fs::write(folder.join(name), &buffer.bytes).unwrap();
        }
        let entry = kernel["entry"].as_str().unwrap();
        let mut gcc = Command::new("gcc");
        gcc.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-Ibundle", "main.c", "-o", "program"])
            .args([format!("-DNAME(x)={entry}##x"), format!("-DROWS={m}"), format!("-DN={n}"), format!("-DK={k}")])
            .arg(Path::new("bundle").join(kernel["file"].as_str().unwrap()))
            .current_dir(folder);
        let built = gcc.output().map_err(|error| error.to_string())?;
        if !built.status.success() {
            return Err(format!("{gcc:?}\n{}", String::from_utf8_lossy(&built.stderr)));
        }
        let ran = Command::new(folder.join("program")).current_dir(folder).output().map_err(|e| e.to_string())?;
        if !ran.status.success() {
            return Err(format!("{entry}: {:?} {}", ran.status, String::from_utf8_lossy(&ran.stderr)));
        }
        let y = fs::read(folder.join("y.bin")).unwrap();
        let report = problem.check(Family::Stream, &[&y], Sample::Everything);
        if !report.passed() || report.compared != m * n {
            return Err(format!("{entry} with {m} rows: {report:?}"));
        }
    }
    Ok(())
}
