//! How an error reaches a person: one line with its causes, and one line with the remedy.

use std::fmt::Write as _;

/// An error that knows its remedy.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Hinted {
    message: String,
    hint: String,
}

impl Hinted {
    /// `message` says what is wrong, `hint` what to do, both on one line.
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }

    /// What to do.
    pub fn hint(&self) -> &str {
        &self.hint
    }
}

/// `error: …: caused by …`, then `hint: …` if an error of the chain has one. A cause whose text its effect already
/// quotes is not repeated.
pub fn describe(error: &anyhow::Error) -> String {
    let mut text = String::from("error: ");
    let mut said = String::new();
    for cause in error.chain() {
        let message = cause.to_string().replace('\n', " ");
        if said.is_empty() {
            text.push_str(&message);
        } else if said.contains(&message) {
            continue;
        } else {
            let _ = write!(text, ": caused by {message}");
        }
        said.push_str(&message);
    }
    text.push('\n');
    if let Some(hinted) = error.chain().find_map(|cause| cause.downcast_ref::<Hinted>()) {
        let _ = writeln!(text, "hint: {}", hinted.hint);
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_chain_is_one_line_and_the_hint_the_next() {
        let error = Err::<(), _>(Hinted::new("bpffs is not mounted", "mount -t bpf bpf /sys/fs/bpf"))
            .context("cannot start the dataplane")
            .expect_err("it is an error");
        assert_eq!(
            describe(&error),
            "error: cannot start the dataplane: caused by bpffs is not mounted\nhint: mount -t bpf bpf /sys/fs/bpf\n"
        );
    }

    #[test]
    fn a_cause_that_was_quoted_is_not_repeated() {
        let cause = std::io::Error::other("no such device");
        let text = format!("interface eth9: {cause}");
        assert_eq!(describe(&anyhow::Error::new(cause).context(text)), "error: interface eth9: no such device\n");
    }
}
