//! The one sort of the filter: the standard library's adds some 10 KB for each type that is sorted.

/// Sorts by a key. Not stable: items with the same key change places.
pub fn by_key<T, K: Ord>(items: &mut [T], key: impl Fn(&T) -> K) {
    by(items, |one, other| key(one) < key(other));
}

/// Sorts by an order, in place (heapsort; Williams, "Algorithm 232", 1964): n log n at the worst.
/// Not stable.
pub fn by<T>(items: &mut [T], is_less: impl Fn(&T, &T) -> bool) {
    let len = items.len();
    for root in (0..len / 2).rev() {
        sink(items, root, len, &is_less);
    }
    for end in (1..len).rev() {
        items.swap(0, end);
        sink(items, 0, end, &is_less);
    }
}

/// Lets the item at `root` sink to its place in the heap of the first `len`.
fn sink<T>(items: &mut [T], mut root: usize, len: usize, is_less: &impl Fn(&T, &T) -> bool) {
    loop {
        let left = root.saturating_mul(2).saturating_add(1);
        let is_below = |one: usize, other: usize| {
            let (one, other) = (items.get(one), items.get(other).filter(|_| other < len));
            matches!((one, other), (Some(one), Some(other)) if is_less(one, other))
        };
        let right = left.saturating_add(1);
        let child = if is_below(left, right) { right } else { left };
        if !is_below(root, child) {
            return;
        }
        items.swap(root, child);
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
