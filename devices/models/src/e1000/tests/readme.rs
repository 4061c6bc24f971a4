//! The README names tests that there are.

use std::{collections::HashSet, fs, path::Path};

/// The tests below `folder`, as the README writes them: the file, or the folder of a file without a name of its own, and
/// the test.
fn tests(folder: &Path, found: &mut HashSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests(&path, found);
            continue;
        }
        let name = match path.file_stem().unwrap().to_str().unwrap() {
            "mod" | "tests" => folder.file_name().unwrap(),
            _ => path.file_stem().unwrap(),
        };
        tests_of(name.to_str().unwrap(), &path, found);
    }
}

/// The tests in one file, which the README calls `name`.
fn tests_of(name: &str, path: &Path, found: &mut HashSet<String>) {
    let text = fs::read_to_string(path).unwrap();
    let mut lines = text.lines().map(str::trim);
    while lines.any(|line| line == "#[test]") {
        let test = lines.find_map(|line| line.strip_prefix("fn ")).unwrap();
        let test = test.split('(').next().unwrap();
        found.insert(format!("{name}::{test}"));
    }
}

#[test]
fn every_test_that_the_readme_names_is_there() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let folder = models.join("e1000");
    let mut found = HashSet::new();
    tests(&folder, &mut found);
    tests_of("models", &models.join("tests.rs"), &mut found);
    let readme = fs::read_to_string(folder.join("README.md")).unwrap();
    let rows = readme.lines().filter(|line| line.starts_with("| "));
    let rows: Vec<_> = rows.filter(|row| !row.starts_with("| Section")).collect();
    assert!(rows.len() > 20, "the tables have {} rows", rows.len());
    for row in rows {
        let cells: Vec<_> = row.trim_matches('|').split('|').collect();
        assert_eq!(cells.len(), 3, "section, rule and test: {row}");
        let names: Vec<_> = cells[2].split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "a rule without a test: {row}");
        for name in names {
            assert!(found.contains(name), "no test {name}");
        }
    }
}
