//! Links `libbitsmith` from the folder that `BITSMITH_LIB_DIR` names: `lib` of an installed package, or `target/release`.

fn main() {
    println!("cargo::rerun-if-env-changed=BITSMITH_LIB_DIR");
    let Ok(folder) = std::env::var("BITSMITH_LIB_DIR") else {
        panic!(
            "BITSMITH_LIB_DIR is not set; it names the folder of libbitsmith, as runtime/capi/install.sh installs it"
        );
    };
    println!("cargo::rustc-link-search=native={folder}");
    println!("cargo::rustc-link-lib=dylib=bitsmith");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
}
