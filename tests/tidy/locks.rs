//! Every lock of the engine has a rank, and the table of locks in the guide has every rank in its place.

use crate::sources::all;

/// Engine modules whose locks have a rank.
const ENGINE: [&str; 11] = ["io", "tls", "owners", "layer", "journal", "catalog", "volume", "store", "serve", "hydrate", "source"];

fn text(path: &str) -> String {
    all().into_iter().find(|source| source.path == path).unwrap_or_else(|| panic!("{path} is gone")).text
}

/// The variants of `Rank`, without those of tests.
fn ranks() -> Vec<String> {
    let text = text("src/sync/rank.rs");
    let body = text.split("pub enum Rank {").nth(1).and_then(|rest| rest.split("\n}").next()).expect("the ranks");
    let lines: Vec<&str> = body.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).collect();
    let variants = lines.iter().enumerate().filter(|(number, _)| *number == 0 || !lines[number - 1].starts_with("#[cfg(test)"));
    let names = variants.filter_map(|(_, line)| line.strip_suffix(','));
    names.filter(|name| *name != "Unranked").map(str::to_owned).collect()
}

/// Locks that a derived `Default` makes.
fn derived(code: &str) -> usize {
    let (mut is_default, mut derives, mut count) = (false, false, 0);
    for line in code.lines().map(str::trim) {
        match line {
            _ if line.starts_with("#[derive(") => derives = line.contains("Default"),
            _ if line.contains("struct ") => is_default = std::mem::take(&mut derives),
            "}" => is_default = false,
            _ => {}
        }
        let is_lock = ["Mutex<", "RwLock<"].iter().any(|lock| line.contains(&format!(": {lock}")) || line.contains(&format!("({lock}")));
        count += usize::from(is_default && is_lock);
    }
    count
}

#[test]
fn the_table_of_locks_has_every_rank_in_its_order() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/guide/architecture.md")).expect("the guide");
    let table = text.split("| rank | guards |").nth(1).expect("the table of locks");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let rows: Vec<String> = rows.filter_map(|row| Some(row.strip_prefix("| `")?.split('`').next()?.to_owned())).collect();
    assert!(rows.len() > 40, "only {} rows were seen", rows.len());
    assert_eq!(rows, ranks());
}

#[test]
fn every_lock_of_the_engine_has_a_rank() {
    let (mut seen, mut problems) = (0, Vec::new());
    for source in all().iter().filter(|source| source.module().is_some_and(|module| ENGINE.contains(&module))) {
        // Disks of tests, and tests in files of their own, are no part of the engine.
        let is_test = ["/tests", "proof", "faulty.rs", "simulated.rs"].iter().any(|part| source.path.contains(part));
        if is_test {
            continue;
        }
        let code = source.code();
        let count = |word: &str| code.matches(word).count();
        let ranked = count("Mutex::ranked(") + count("RwLock::ranked(");
        let plain = count("Mutex::new(") + count("RwLock::new(") + count("Mutex::default(") + count("RwLock::default(")
            - count("StaticMutex::new(");
        let derived = derived(&code);
        seen += ranked;
        if plain + derived > 0 {
            problems.push(format!("{}: {} locks without a rank", source.path, plain + derived));
        }
    }
    assert!(seen > 40, "only {seen} locks with a rank were seen");
    assert!(problems.is_empty(), "give them a rank (`sync::Rank`): {}", problems.join("\n"));
}
