//! The one sort of the filter: the standard library's adds some 10 KB for each type that is sorted.

/// Sorts by a key. Not stable: items with the same key change places.
pub fn by_key<T, K: Ord>(items: &mut [T], key: impl Fn(&T) -> K) {
    by(items, |one, other| key(one) < key(other));
}

/// Sorts by an order, in place (heapsort; Williams, "Algorithm 232", 1964): n log n at the worst.
/// Not stable.
pub fn by<T>(items: &mut [T], is_less: impl Fn(&T, &T) -> bool) {
    let len = items.len();
    let mut at = |step| match step {
        Step::IsLess(one, other) => match (items.get(one), items.get(other)) {
            (Some(one), Some(other)) => is_less(one, other),
            _ => false,
        },
        Step::Swap(one, other) => {
            items.swap(one, other);
            true
        }
    };
    places(len, &mut at);
}

/// What a sort does to the items at two places; the answer matters for the first alone.
enum Step {
    IsLess(usize, usize),
    Swap(usize, usize),
}

/// Sorts `len` items by their places, and so without their type. Once, not in each of its callers.
#[inline(never)]
fn places(len: usize, at: &mut dyn FnMut(Step) -> bool) {
    for root in (0..len / 2).rev() {
        sink(root, len, at);
    }
    for end in (1..len).rev() {
        at(Step::Swap(0, end));
        sink(0, end, at);
    }
}

/// Lets the item at `root` sink to its place in the heap of the first `len`.
fn sink(mut root: usize, len: usize, at: &mut dyn FnMut(Step) -> bool) {
    loop {
        let left = root.saturating_mul(2).saturating_add(1);
        let right = left.saturating_add(1);
        let mut is_below = |one, other| other < len && at(Step::IsLess(one, other));
        let child = if is_below(left, right) { right } else { left };
        if !is_below(root, child) {
            return;
        }
        at(Step::Swap(root, child));
        root = child;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_sorts(items: Vec<(u8, u16)>) {
            let (mut got, mut want) = (items.clone(), items);
            by_key(&mut got, |item| *item);
            want.sort_unstable();
            prop_assert_eq!(&got, &want);
            by(&mut got, |one, other| one > other);
            want.reverse();
            prop_assert_eq!(got, want);
        }
    }
}
