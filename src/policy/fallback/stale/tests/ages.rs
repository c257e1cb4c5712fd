//! How old answers are when they come, and until when they may be used.

use super::*;
use crate::base::http_date;
use proptest::prelude::*;

#[test]
fn age_counts_what_it_had_and_ends_at_the_earliest_bound() {
    for (response, last) in [
        (&[][..], 300),
        (&[("age", "100")], 200),
        (&[("age", "x")], 300),
        (&[("cache-control", "max-age=9")], 300),
        (&[("cache-control", "max-age=9, must-revalidate")], 9),
        (&[("cache-control", "s-maxage=9, max-age=99")], 9),
        (&[("cache-control", "max-age=9, stale-if-error=20")], 29),
        (
            &[("cache-control", "stale-if-error=99999999999999999999")],
            300,
        ),
        (&[("date", "Fri, 15 Jan 2027 07:58:20 GMT")], 200),
        (
            &[("date", "Fri, 15 Jan 2027 07:58:20 GMT"), ("age", "150")],
            150,
        ),
        (&[("date", "Fri, 15 Jan 2027 08:10:00 GMT")], 300),
        (
            &[
                ("date", "Fri, 15 Jan 2027 08:10:00 GMT"),
                ("expires", "Fri, 15 Jan 2027 08:10:09 GMT"),
                ("cache-control", "must-revalidate"),
            ],
            9,
        ),
        (
            &[
                ("date", "Fri, 15 Jan 2027 07:59:55 GMT"),
                ("expires", "Fri, 15 Jan 2027 08:00:04 GMT"),
                ("cache-control", "stale-if-error=20"),
            ],
            24,
        ),
        (
            &[
                ("date", "Fri, 15 Jan 2027 08:00:00 GMT"),
                ("expires", "Fri, 15 Jan 2027 09:00:00 GMT"),
                ("cache-control", "max-age=9, must-revalidate"),
            ],
            9,
        ),
    ] {
        let proxy = Proxy::new(config());
        let asked = proxy.get("/", &[]);
        assert!(proxy.keep(&asked, response, b""));
        let before = proxy.find(&asked).unwrap().age;
        proxy.machine.advance(Nanos::from_secs(last));
        assert_eq!(
            proxy.find(&asked).unwrap().age,
            before + last,
            "{response:?}"
        );
        proxy.machine.advance(Nanos(1));
        assert!(proxy.find(&asked).is_none(), "{response:?}");
    }
}

proptest! {
    #[test]
    fn dates_of_any_kind_make_no_answer_younger_than_it_says(
        date in "(.{0,40}|[A-Z][a-z]{2}, [0-3][0-9] (Jan|Nov) (19|20|99)[0-9]{2} [0-2][0-9]:[0-5][0-9]:[0-6][0-9] GMT)",
        expires in "(.{0,40}|[A-Z][a-z]{2}, [0-3][0-9] (Jan|Nov) (19|20|99)[0-9]{2} [0-2][0-9]:[0-5][0-9]:[0-6][0-9] GMT)",
        age in 0u32..400,
        revalidate: bool,
    ) {
        let proxy = Proxy::new(config());
        let asked = proxy.get("/", &[]);
        let age_text = age.to_string();
        let control = if revalidate { "must-revalidate" } else { "public" };
        let response = [("age", age_text.as_str()), ("date", &date), ("expires", &expires), ("cache-control", control)];
        let of = |text: &str| http_date::parse(text.as_bytes()).map(UnixTime::as_secs);
        let fresh = of(&expires).zip(of(&date)).map_or(0, |(to, from)| to.saturating_sub(from));
        let old = of(&date).map_or(0, |sent| NOW.as_secs().saturating_sub(sent)).max(age.into());
        let is_kept = proxy.keep(&asked, &response, b"");
        let may = fresh > 0 && old <= 300 && (!revalidate || old < fresh);
        prop_assert_eq!(is_kept, may, "{:?}", response);
        if is_kept {
            prop_assert_eq!(proxy.find(&asked).unwrap().age, old);
        }
    }
}
