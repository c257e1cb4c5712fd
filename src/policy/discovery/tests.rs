use super::*;
use proptest::prelude::*;

/// Endpoints with these numbers.
pub(super) fn membership(numbers: impl IntoIterator<Item = u32>) -> Membership {
    let mut builder = Builder::default();
    for n in numbers {
        let address = format!("10.0.{}.{}:80", n / 256, n % 256);
        let named = Named {
            address: &address,
            weight: 1,
            ..Named::default()
        };
        builder.add(named).unwrap();
    }
    builder.finish().unwrap()
}

pub(super) fn any_membership() -> impl Strategy<Value = Membership> {
    let member = (
        0u64..=MAX_WEIGHT,
        0u64..=MAX_PRIORITY,
        "[a-zé]{0,8}",
        0usize..Verdict::ALL.len(),
    );
    let addresses = prop_oneof![
        any::<(std::net::Ipv4Addr, u16)>().prop_map(|(ip, port)| std::net::SocketAddr::from((
            ip,
            port.max(1)
        ))
        .to_string()),
        any::<(std::net::Ipv6Addr, u16)>().prop_map(|(ip, port)| std::net::SocketAddr::from((
            ip,
            port.max(1)
        ))
        .to_string()),
    ];
    proptest::collection::btree_map(addresses, member, 0..40).prop_map(|members| {
        let mut builder = Builder::default();
        for (address, (weight, priority, zone, verdict)) in &members {
            let named = Named {
                address,
                weight: *weight,
                priority: *priority,
                zone,
                verdict: Verdict::ALL[*verdict],
            };
            builder.add(named).unwrap();
        }
        builder.finish().unwrap()
    })
}

fn add(address: &str) -> Result<Membership, Flaw> {
    let mut builder = Builder::default();
    let named = Named {
        address,
        weight: 1,
        ..Named::default()
    };
    builder.add(named)?;
    builder.finish()
}

#[test]
fn an_address_has_one_spelling() {
    for (text, want) in [
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("[::1]:80", "[::1]:80"),
        ("[2001:DB8:0:0:0:0:0:1]:443", "[2001:db8::1]:443"),
        ("[2001:db8::0001]:443", "[2001:db8::1]:443"),
        ("[::ffff:10.0.0.1]:80", "[::ffff:10.0.0.1]:80"),
        ("[::ffff:a00:1]:80", "[::ffff:10.0.0.1]:80"),
    ] {
        assert_eq!(add(text).unwrap().members()[0].address, want);
    }
    assert_eq!(joined("2001:DB8::1", 443), "[2001:DB8::1]:443");
    assert_eq!(joined("[::1]", 443), "[::1]:443");
    assert_eq!(joined("10.0.0.1", 80), "10.0.0.1:80");
}

#[test]
fn what_is_no_address_is_refused_with_its_place() {
    for bad in [
        "",
        "users.local:80",
        "localhost:80",
        "10.0.0.1",
        "10.0.0.1:0",
        "10.0.0.1:65536",
        "10.0.0.1:-1",
        "10.0.0.01:80",
        "10.0.0:80",
        "::1:80",
        "[::1]",
        "[::1]:0",
        "[fe80::1%1]:80",
        "[fe80::1%eth0]:80",
        " 10.0.0.1:80",
        "10.0.0.1:80\r\nx: y",
        "10.0.0.1:80,10.0.0.2:80",
    ] {
        let flaw = add(bad).unwrap_err();
        assert_eq!(flaw.at, 0, "{bad:?}");
        assert!(flaw.text().ends_with(" from 1 to 65535"), "{}", flaw.text());
        assert!(!flaw.text().contains('\n'), "{}", flaw.text());
    }
    let long = add(&"x".repeat(100_000)).unwrap_err().text();
    assert!(long.len() < 300, "{long}");
}

#[test]
fn each_field_has_its_range_and_each_address_stands_once() {
    let good = Named {
        address: "10.0.0.1:80",
        weight: MAX_WEIGHT,
        priority: MAX_PRIORITY,
        zone: "a",
        verdict: Verdict::Draining,
    };
    let why = |named: Named<'_>| {
        let mut builder = Builder::default();
        builder.add(good).unwrap();
        let added = builder.add(named);
        added
            .and_then(|()| builder.finish())
            .map_or_else(|flaw| flaw.text(), |all| all.len().to_string())
    };
    let other = Named {
        address: "10.0.0.2:80",
        ..good
    };
    let zone = "z".repeat(256);
    for (named, want) in [
        (other, "2"),
        (good, "endpoint 1: \"10.0.0.1:80\" stands twice"),
        (
            Named {
                weight: 1_000_000_000,
                ..other
            },
            "endpoint 1: \"1000000000\" is no weight from 0 to 1000",
        ),
        (
            Named {
                priority: 128,
                ..other
            },
            "endpoint 1: \"128\" is no priority from 0 to 127",
        ),
        (
            Named {
                zone: "a\u{7}",
                ..other
            },
            "endpoint 1: \"a\\u0007\" is no name of a zone",
        ),
    ] {
        assert_eq!(why(named), want);
    }
    assert!(
        why(Named {
            zone: &zone,
            ..other
        })
        .ends_with("is no name of a zone")
    );
}

#[test]
fn a_thousand_are_the_most_and_one_more_is_refused() {
    assert_eq!(membership(0..1_000).len(), MAX_MEMBERS);
    let mut builder = Builder::default();
    let flaw = (0..1_001).find_map(|n| {
        let address = joined("10.0.0.1", n + 1);
        let named = Named {
            address: &address,
            ..Named::default()
        };
        builder.add(named).err()
    });
    let want =
        "endpoint 1000: \"10.0.0.1:1001\" is one more than the 1000 that an upstream may have";
    assert_eq!(flaw.unwrap().text(), want);
}

#[test]
fn they_are_found_whatever_their_order_was() {
    let all = membership([7, 3, 200, 1]);
    let addresses: Vec<_> = all.members().iter().map(|it| it.address.as_str()).collect();
    assert!(addresses.is_sorted());
    assert!(addresses.iter().all(|it| all.find(it).is_some()));
    assert_eq!(all.find("10.0.0.2:80"), None);
}
