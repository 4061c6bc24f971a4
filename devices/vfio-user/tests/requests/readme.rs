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
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let named = match stem {
            "mod" | "main" | "tests" => folder.file_name().unwrap().to_str().unwrap(),
            _ => stem,
        };
        let text = fs::read_to_string(&path).unwrap();
        let mut lines = text.lines().map(str::trim);
        while lines.any(|line| line == "#[test]") {
            let name = lines.find_map(|line| line.strip_prefix("fn ")).unwrap();
            let name = name.split('(').next().unwrap();
            found.insert(format!("{named}::{name}"));
            found.insert(named.to_owned());
        }
    }
}

#[test]
fn every_test_that_the_readme_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = HashSet::new();
    tests(&root.join("src"), &mut found);
    tests(&root.join("tests"), &mut found);
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let mut named = 0;
    for line in readme.lines().filter(|line| line.starts_with('|')) {
        let cell = line.trim_end_matches('|').rsplit('|').next().unwrap();
        for name in cell.split('`').skip(1).step_by(2) {
            assert!(found.contains(name), "no test {name}");
            named += 1;
        }
    }
    assert!(named > 60, "the tables name their tests: {named}");
}
