//! Sorting where a library's sort would weigh more than all else around it: about 10 KB of code for
//! each type that is sorted.

/// Sorts by a key (heapsort; Williams, "Algorithm 232", 1964): n log n at the worst, in place, not
/// stable.
pub fn by_key<T, K: Ord>(items: &mut [T], key: impl Fn(&T) -> K) {
    let len = items.len();
    for root in (0..len / 2).rev() {
        sink(items, root, len, &key);
    }
    for end in (1..len).rev() {
        items.swap(0, end);
        sink(items, 0, end, &key);
    }
}

/// Lets the item at `root` sink to its place in the heap of the first `len`.
fn sink<T, K: Ord>(items: &mut [T], mut root: usize, len: usize, key: &impl Fn(&T) -> K) {
    loop {
        let left = root.saturating_mul(2).saturating_add(1);
        let of = |at: usize| items.get(at).filter(|_| at < len).map(key);
        let right = left.saturating_add(1);
        let child = if of(right) > of(left) { right } else { left };
        if of(child) <= of(root) {
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
            prop_assert_eq!(got, want);
        }
    }
}
