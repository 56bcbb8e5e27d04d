//! Where things are in this checkout.

use std::path::PathBuf;

/// The root of the checkout.
pub(crate) fn root() -> PathBuf {
    // xtask is always run from the checkout that it was built in: `cargo xtask` builds it first.
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().map(PathBuf::from).unwrap_or_default()
}

/// Everything that xtask makes, apart from cargo's own target directory.
pub(crate) fn build_directory() -> PathBuf {
    root().join(".build")
}

/// Cargo's target directory of the host build.
pub(crate) fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |directory| root().join(directory))
}

/// The kernel object, where svc-userspace/build.rs looks for it.
pub(crate) fn kernel_object() -> PathBuf {
    build_directory().join("ebpf").join("svc.o")
}

/// The kernel object that logs: for debugging, and never embedded unless somebody asks for it.
pub(crate) fn kernel_object_with_log() -> PathBuf {
    build_directory().join("ebpf").join("svc-log.o")
}

/// Where tools are kept that setup builds: shared by all checkouts of this user, so that a fresh clone is quick.
///
/// `$SVC_TOOLS`, else `$XDG_CACHE_HOME/svc`, else `~/.cache/svc`, else the checkout's `.build/tools`.
pub(crate) fn tools_directory() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("SVC_TOOLS")
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("svc")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache").join("svc")))
        .unwrap_or_else(|| build_directory().join("tools"))
}
