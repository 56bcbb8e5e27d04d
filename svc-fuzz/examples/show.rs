//! Says in words what a file of a fuzz target stands for, then runs it: `show TARGET FILE`.

use std::{env, fs, process::ExitCode};

use svc_fuzz::{case::Case, generate, packets, trace};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [target, file] = &arguments[..] else {
        eprintln!("usage: show frames|sequences|objects FILE");
        return ExitCode::FAILURE;
    };
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) => {
            eprintln!("{file}: {error}");
            return ExitCode::FAILURE;
        }
    };
    match target.as_str() {
        "frames" => show(&trace::read(&bytes)),
        "sequences" => show(&generate::case(&bytes)),
        "objects" => {
            println!("{}", svc_fuzz::objects::describe(&bytes));
            svc_fuzz::objects(&bytes);
            svc_fuzz::objects::run_crashing(&bytes, u32::MAX);
        }
        other => {
            eprintln!("{other}: no such target: frames, sequences, objects");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn show(case: &Case) {
    println!("{:#?}", case.setting);
    for event in &case.events {
        println!("{event:02x?}");
    }
    println!("{:?}", packets::run(case));
}
