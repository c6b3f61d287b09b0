//! The commands that the documents show. Before every `sh` fence stands a comment that does not show: `<!-- run -->`, or
//! `<!-- needs: what a test does not have -->`. With `<!-- run: NAME=text; NAME=text -->` the words NAME of the commands
//! stand for these texts. A plain fence after `<!-- output -->` shows what the commands before it print; one after
//! `<!-- file: NAME -->` is a file that commands use. Pure.

use std::collections::BTreeMap;

/// What is done with a fence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Commands that a test runs.
    Run {
        /// The commands, as they are run.
        script: String,
        /// What they print, as it is shown.
        output: Option<String>,
    },
    /// Commands that need what a test does not have.
    Needs(String),
    /// A file in the directory where commands run.
    File {
        /// Its name.
        name: String,
        /// What is in it.
        text: String,
    },
}

/// A fence that cannot be read. The number is that of its first line, from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// Commands without a comment before them.
    #[error("line {0}: nothing says whether these commands are run: `<!-- run -->` or `<!-- needs: ... -->`")]
    Unmarked(usize),
    /// A comment that belongs to no fence, or to one of another kind.
    #[error("line {0}: `{1}` does not belong to the fence after it")]
    Misplaced(usize, String),
    /// A word that does not occur.
    #[error("line {0}: the commands have no word {1}")]
    NoWord(usize, String),
    /// It begins and does not end.
    #[error("line {0}: the fence does not end")]
    Endless(usize),
}

/// The fences of a Markdown text that commands are in or need, in order.
///
/// # Errors
/// The first fence that cannot be read.
pub fn steps(markdown: &str) -> Result<Vec<Step>, Wrong> {
    let mut steps = Vec::new();
    let mut mark: Option<&str> = None;
    let mut lines = markdown.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let number = index + 1;
        if let Some(language) = line.trim_start().strip_prefix("```") {
            let mut text = String::new();
            loop {
                let (_, line) = lines.next().ok_or(Wrong::Endless(number))?;
                if line.trim_start().starts_with("```") {
                    break;
                }
                text.push_str(line);
                text.push('\n');
            }
            step(&mut steps, (language.trim(), text), mark.take(), number)?;
        } else if let Some(found) = marker(line) {
            mark = Some(found);
        } else if let Some(mark) = mark
            && !line.trim().is_empty()
        {
            return Err(Wrong::Misplaced(number, mark.to_owned()));
        }
    }
    Ok(steps)
}

/// The text of a comment that is about a fence.
fn marker(line: &str) -> Option<&str> {
    let text = line.trim().strip_prefix("<!--")?.strip_suffix("-->")?.trim();
    let word = text.split(':').next()?;
    ["run", "needs", "output", "file"].contains(&word).then_some(text)
}

fn step(
    steps: &mut Vec<Step>,
    (language, text): (&str, String),
    mark: Option<&str>,
    number: usize,
) -> Result<(), Wrong> {
    let commands = ["sh", "bash", "shell", "console"].contains(&language);
    let Some(mark) = mark else {
        return if commands {
            Err(Wrong::Unmarked(number))
        } else {
            Ok(())
        };
    };
    let misplaced = || Wrong::Misplaced(number, mark.to_owned());
    let (word, rest) = mark.split_once(':').unwrap_or((mark, ""));
    match (word, rest.trim()) {
        ("run", rest) if commands => {
            let script = substituted(text, rest, number)?;
            steps.push(Step::Run { script, output: None });
        }
        ("needs", what) if commands && !what.is_empty() => steps.push(Step::Needs(what.to_owned())),
        ("file", name) if !commands && !name.is_empty() => {
            let name = name.to_owned();
            steps.push(Step::File { name, text });
        }
        ("output", "") if !commands => match steps.last_mut() {
            Some(Step::Run { output, .. }) if output.is_none() => *output = Some(text),
            Some(Step::Needs(_)) => {}
            _ => return Err(misplaced()),
        },
        _ => return Err(misplaced()),
    }
    Ok(())
}

/// The script with `NAME=text; NAME=text` carried out.
fn substituted(mut script: String, substitutions: &str, number: usize) -> Result<String, Wrong> {
    for part in substitutions
        .split(';')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let (name, text) = part.split_once('=').unwrap_or((part, ""));
        if !script.contains(name) {
            return Err(Wrong::NoWord(number, name.to_owned()));
        }
        script = script.replace(name, text);
    }
    Ok(script)
}

/// The lines of `shown` that `said` does not bear out. A table's heading (a line without small letters) must be there
/// word by word; of other lines the first word, for figures and times differ. A line `...` stands for any.
#[must_use]
pub fn missing_from(said: &str, shown: &str) -> Vec<String> {
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let mut said: BTreeMap<usize, Vec<String>> = said.lines().map(words).enumerate().collect();
    let mut missing = Vec::new();
    for line in shown
        .lines()
        .filter(|line| !line.trim().is_empty() && line.trim() != "...")
    {
        let heading = !line.chars().any(char::is_lowercase);
        let wanted = words(line);
        let found = said
            .iter()
            .find(|(_, words)| {
                if heading {
                    **words == wanted
                } else {
                    words.first() == wanted.first()
                }
            })
            .map(|(index, _)| *index);
        match found {
            Some(index) => {
                said.remove(&index);
            }
            None => missing.push(line.to_owned()),
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn fences_are_read_with_their_marks() {
        let text = "# A\n<!-- run: REGISTRY=localhost --set a=b; N=1 -->\n\n```sh\nhelm REGISTRY N\n```\n<!-- output -->\n```\n\
                    NAME\n```\n```\nplain\n```\n<!-- file: a.yaml -->\n```yaml\na: 1\n```\n<!-- needs: a GPU -->\n  ```sh\n  x\n  ```\n\
                    <!-- another comment -->\n";
        let steps = steps(text).expect("it can be read");
        assert_eq!(
            steps,
            [
                Step::Run {
                    script: "helm localhost --set a=b 1\n".to_owned(),
                    output: Some("NAME\n".to_owned()),
                },
                Step::File {
                    name: "a.yaml".to_owned(),
                    text: "a: 1\n".to_owned(),
                },
                Step::Needs("a GPU".to_owned()),
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let check = |text: &str, expected: Wrong| assert_eq!(steps(text), Err(expected), "{text}");
        let misplaced = |line, text: &str| Wrong::Misplaced(line, text.to_owned());
        check("a\n```sh\nls\n```\n", Wrong::Unmarked(2));
        check("```bash\nls\n```\n", Wrong::Unmarked(1));
        check("```sh\nls\n", Wrong::Endless(1));
        check("<!-- run -->\ntext\n", misplaced(2, "run"));
        check("<!-- run -->\n```yaml\na: 1\n```\n", misplaced(2, "run"));
        check("<!-- needs: -->\n```sh\na\n```\n", misplaced(2, "needs:"));
        check("<!-- output -->\n```\na\n```\n", misplaced(2, "output"));
        check(
            "<!-- run: X=1 -->\n```sh\nls\n```\n",
            Wrong::NoWord(2, "X".to_owned()),
        );
    }

    #[test]
    fn output_is_compared_by_its_shape() {
        let said = "NAME   READY\ncoder  1/1   3s\nother\n";
        assert!(missing_from(said, "NAME READY\n...\ncoder  0/1  9s\n").is_empty());
        assert_eq!(missing_from(said, "NAME STATUS\n"), ["NAME STATUS"]);
        assert_eq!(missing_from(said, "coder\ncoder\n"), ["coder"]);
    }

    #[test]
    fn every_command_in_the_documents_is_run_or_says_what_it_needs() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut files = vec![root.join("README.md"), root.join("charts/weir/README.md")];
        let docs = fs::read_dir(root.join("docs")).expect("docs");
        files.extend(docs.map(|entry| entry.expect("an entry").path()));
        let mut run = 0;
        for file in files
            .iter()
            .filter(|file| file.extension().is_some_and(|it| it == "md"))
        {
            let text = fs::read_to_string(file).expect("a document");
            match steps(&text) {
                Ok(steps) => {
                    run += steps
                        .iter()
                        .filter(|step| matches!(step, Step::Run { .. }))
                        .count()
                }
                Err(wrong) => panic!("{}: {wrong}", file.display()),
            }
        }
        assert!(run >= 6, "only {run} fences are run");
    }
}
