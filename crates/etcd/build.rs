//! Compiles the protos in Rust, so that no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["proto/etcdserverpb.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_server(false)
        // Values are large and are only looked at.
        .bytes(".")
        .compile_fds(files)?;
    Ok(())
}
