//! Runs every `tests/cases/**/*.kir` file whose head asks for the verifier, the parser or the printer.
//!
//! `tests/cases/readme.kir` documents the commands. Files whose `// test:` line names another command belong to
//! another runner and are passed over.

use bitsmith_compiler::caps::{CPU_LEVELS, Caps, Feature};
use bitsmith_compiler::ir;
use std::fs;
use std::path::{Path, PathBuf};

/// A fault that was found: line, message.
type Fault = (u32, String);

#[test]
fn every_case_shows_exactly_its_faults() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.sort();
    let (mut cases, mut faults, mut failures) = (0, 0, Vec::new());
    for file in &files {
        let text = fs::read_to_string(file).expect("a case is a text file");
        let Some(command) = option(&text, "test") else {
            failures.push(format!("{}: the head lacks a `// test:` line", file.display()));
            continue;
        };
        if !["verify", "parse", "roundtrip"].contains(&command) {
            continue;
        }
        let caps = match caps(option(&text, "caps").unwrap_or("any")) {
            Ok(caps) => caps,
            Err(why) => {
                failures.push(format!("{}: {why}", file.display()));
                continue;
            }
        };
        for section in sections(&text) {
            cases += 1;
            let expected = expected(&section);
            faults += expected.len();
            for failure in compare(&run(command, &caps, &section), &expected) {
                failures.push(format!("{}:{failure}", file.display()));
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(cases >= 30 && faults >= 60, "only {cases} kernels with {faults} faults were found under {root:?}");
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the cases are there") {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "kir") {
            files.push(path);
        }
    }
}

/// The value of a `// name: value` line in the head.
fn option<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let head = text.lines().take_while(|line| line.trim().is_empty() || line.starts_with("//"));
    head.filter_map(|line| line.strip_prefix("// ")?.split_once(": "))
        .find(|(key, _)| *key == name)
        .map(|(_, v)| v.trim())
}

/// `any` or a CPU level, then `without <feature>` any number of times.
fn caps(spelled: &str) -> Result<Caps, String> {
    let mut words = spelled.split_whitespace();
    let name = words.next().unwrap_or("any");
    let known = CPU_LEVELS.iter().copied().chain([Caps::ANY]).find(|caps| caps.name == name);
    let mut caps = known.ok_or_else(|| format!("no caps are called {name}"))?;
    while let Some(word) = words.next() {
        let feature = words.next().and_then(|name| Feature::ALL.into_iter().find(|f| f.name() == name));
        match (word, feature) {
            ("without", Some(feature)) => caps.features = caps.features.without(feature),
            _ => return Err(format!("`{spelled}` is no caps: write `any without subgroups`")),
        }
    }
    Ok(caps)
}

/// The kernels of a file, each behind as many empty lines as there are lines before it, so line numbers hold.
fn sections(text: &str) -> Vec<String> {
    let mut sections = vec![String::new()];
    for (number, line) in text.lines().enumerate() {
        if line.starts_with("// ---") {
            sections.push("\n".repeat(number));
        }
        let section = sections.last_mut().expect("there is one");
        section.push_str(line);
        section.push('\n');
    }
    sections
}

/// The annotations: line, substring.
fn expected(section: &str) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (number, line) in section.lines().enumerate() {
        for piece in line.split("// error: ").skip(1) {
            faults.push((number as u32 + 1, piece.trim().to_string()));
        }
    }
    faults
}

fn run(command: &str, caps: &Caps, section: &str) -> Vec<Fault> {
    let (kernel, lines) = match ir::parse_with_lines(section) {
        Ok(parsed) => parsed,
        Err(error) => return vec![(error.line, error.to_string())],
    };
    if command == "parse" {
        return Vec::new();
    }
    if let Err(faults) = ir::verify(&kernel, caps) {
        return faults.into_iter().map(|fault| (lines.of(&fault.place).unwrap_or(0), fault.to_string())).collect();
    }
    if command == "roundtrip" {
        let printed = kernel.to_string();
        let bare = |text: &str| text.lines().map(|line| line.split("//").next().unwrap_or("").trim_end().to_string());
        let source: Vec<String> = bare(section).filter(|line| !line.is_empty()).collect();
        if ir::parse(&printed).as_ref() != Ok(&kernel) {
            return vec![(0, format!("reads back as another kernel:\n{printed}"))];
        }
        if bare(&printed).ne(source) {
            return vec![(0, format!("prints differently:\n{printed}"))];
        }
    }
    Vec::new()
}

/// Pairs each annotation with one fault on its line, and says what is left on either side.
fn compare(found: &[Fault], expected: &[Fault]) -> Vec<String> {
    let mut open = found.to_vec();
    let mut failures = Vec::new();
    for (line, wanted) in expected {
        match open.iter().position(|(at, message)| at == line && message.contains(wanted.as_str())) {
            Some(index) => drop(open.remove(index)),
            None => failures.push(format!("{line}: nobody says `{wanted}`")),
        }
    }
    failures.extend(open.into_iter().map(|(line, message)| format!("{line}: unexpected: {message}")));
    failures
}

#[test]
fn the_runner_notices_what_is_missing_or_too_much() {
    let fault = |line, text: &str| (line, text.to_string());
    assert_eq!(compare(&[fault(3, "body.0: wrong type")], &[fault(3, "wrong")]), Vec::<String>::new());
    assert_eq!(compare(&[], &[fault(3, "wrong")]).len(), 1);
    assert_eq!(compare(&[fault(4, "wrong")], &[fault(3, "wrong")]).len(), 2);
    assert_eq!(compare(&[fault(3, "wrong"), fault(3, "wrong")], &[fault(3, "wrong")]).len(), 1);
    assert!(caps("any without wings").is_err() && caps("z80").is_err());
    assert!(!caps("any without subgroups").expect("they exist").features.has(Feature::Subgroups));
}
