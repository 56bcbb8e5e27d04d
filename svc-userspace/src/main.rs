//! `svc`: the agent and the command line. Everything is in the library; this only hands over the exit code.

fn main() -> std::process::ExitCode {
    svc_userspace::cli::main()
}
