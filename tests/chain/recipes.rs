//! The recipes of docs/recipes.md are valid, and what they say of "five a minute" is so.

use super::*;

const RECIPES: &str = include_str!("../../docs/recipes.md");
const MINUTE: u64 = 60_000;

fn recipes() -> Vec<Value> {
    let blocks = RECIPES.split("\n```json\n").skip(1);
    let blocks = blocks.map(|block| block.split_once("\n```").unwrap().0);
    blocks
        .map(|json| serde_json::from_str(json).unwrap())
        .collect()
}

#[test]
fn every_recipe_is_valid() {
    let recipes = recipes();
    let sections = RECIPES.matches("\n## ").count();
    assert_eq!(
        recipes.len(),
        sections - 1,
        "one in each section but the first"
    );
    for recipe in &recipes {
        let _ = Proxy::new(recipe);
    }
}

/// The most requests that get through in any 60 s, of a client that tries ten times a second for
/// four minutes.
fn most_in_a_minute(config: &Value, lead_ms: u64) -> usize {
    let proxy = Proxy::new(config);
    proxy.machine.advance(Nanos::from_millis(lead_ms));
    let mut passed: Vec<u64> = Vec::new();
    for now in (0..4 * MINUTE).step_by(100) {
        let stream = SimStream::request("POST", "/login", &[("x-forwarded-for", b"192.0.2.1")]);
        let mut exchange = proxy.begin(&stream);
        if stream.replied().is_none() {
            passed.push(now);
        }
        exchange.on_end(&proxy.worker);
        proxy.machine.advance(Nanos::from_millis(100));
    }
    let within = |first: &u64| {
        let window = first..&(first + MINUTE);
        passed.iter().filter(|at| window.contains(at)).count()
    };
    passed.iter().map(within).max().unwrap()
}

#[test]
fn five_a_minute_is_what_the_table_says() {
    let recipe = recipes()
        .into_iter()
        .find(|recipe| recipe["rate_limits"]["login"].is_object())
        .unwrap();
    let (_, table) = RECIPES.split_once("most in any 60 s |").unwrap();
    let rows: Vec<Vec<&str>> = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    assert_eq!(rows.len(), 5);
    for row in rows {
        let number = |text: &str| text.split(' ').next().unwrap().parse::<u64>().ok();
        let mut config = recipe.clone();
        let limit = &mut config["rate_limits"]["login"];
        limit["algorithm"] = row[1].trim_matches('`').into();
        limit["limit"] = number(row[2]).into();
        limit.as_object_mut().unwrap().remove("burst");
        if let Some(burst) = number(row[3]) {
            limit["burst"] = burst.into();
        }
        // Windows begin at multiples of the period: try them all.
        let worst = (0..MINUTE)
            .step_by(5_000)
            .map(|lead| most_in_a_minute(&config, lead))
            .max();
        assert_eq!(worst, number(row[4]).map(|most| most as usize), "{row:?}");
    }
    let strict = most_in_a_minute(&recipe, 0);
    assert_eq!(strict, 5, "the recipe itself");
}
