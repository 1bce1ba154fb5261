# What a developer runs. `just` alone lists the recipes.
_default:
    @just --list

# Formatting, lints, documentation
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Every test
test:
    cargo test --workspace

# The demo: three local workers and the embedded model
demo:
    cargo run --release -- demo

# Kernels, planner, codec
bench:
    cargo bench -p shoal-engine -p shoal-cluster

# Two network namespaces joined by a cable: discovery by mDNS alone (needs root)
lab:
    scripts/lab/two_boards

# Played boards on a played network (needs root): up CLUSTER.toml, then check, exec, down
boards *what:
    cargo build --release -p coordinator -p shoal-lab
    scripts/lab/lab {{what}}

# Build for 64-bit ARM boards; `just arm test` also tests in an emulator
arm *what:
    scripts/arm {{what}}

# Licences and advisories (needs cargo-deny)
deny:
    cargo deny check

# What CI runs
ci:
    .ci/run
