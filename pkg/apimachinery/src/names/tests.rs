//! Names: what is accepted, and the texts of what is not.

use super::ip::*;
use super::*;

type Check = fn(&str) -> Vec<String>;

#[test]
fn accepts_and_rejects_as_upstream() {
    let long = |length: usize| "a".repeat(length);
    let cases: [(&str, Check, Vec<String>, Vec<String>); 9] = [
        (
            "label",
            is_dns1123_label,
            ["a", "ab", "a1", "a-1", "a--1--2--b", "0", "01", "0-a", &long(63)].map(str::to_owned).into(),
            ["", "A", "-", "a-", "-a", "_", "a_b", ".", "a.b", " ", "a ", "#a#", &long(64), "ą"]
                .map(str::to_owned)
                .into(),
        ),
        (
            "subdomain",
            is_dns1123_subdomain,
            ["a", "a.b", "0.0.0", "a-1.b-2", &long(253)].map(str::to_owned).into(),
            ["", "A", "a..b", ".a", "a.", "a.-b", "a_b", "a@b", &long(254)].map(str::to_owned).into(),
        ),
        (
            "dns1035",
            is_dns1035_label,
            ["a", "a1", "a-b"].map(str::to_owned).into(),
            ["", "1", "1a", "-a", "a.b", "A"].map(str::to_owned).into(),
        ),
        (
            "qualified",
            is_qualified_name,
            [
                "simple",
                "1234",
                "1.2.3.4/5678",
                "Uppercase_Is_OK_123",
                "example.com/Upper_Is.OK-1",
                &long(63),
                &format!("{}/{}", long(253), long(63)),
            ]
            .map(str::to_owned)
            .into(),
            [
                "",
                "nospecialchars%^=@",
                "cantendwithadash-",
                "-x",
                "only/one/slash",
                "Example.com/abc",
                "example.com/",
                "/simple",
                &long(64),
                &format!("{}/abc", long(254)),
            ]
            .map(str::to_owned)
            .into(),
        ),
        (
            "label value",
            is_label_value,
            ["", "simple", "end-with-num-1", "1234", &long(63)].map(str::to_owned).into(),
            ["nospecialchars%^=@", "-x", "x-", ".x", "rā", &long(64)].map(str::to_owned).into(),
        ),
        (
            "port name",
            is_valid_port_name,
            ["telnet", "re-mail-ck", "pop3", "a", "a-1", "1-a", "0a"].map(str::to_owned).into(),
            ["", "longerthan15characters", "123", "a--b", "-a", "a-", "A", "a_b"].map(str::to_owned).into(),
        ),
        (
            "env",
            is_env_var_name,
            ["my.env-name", "MY_ENV.NAME", "_x", "-a"].map(str::to_owned).into(),
            ["", "1a", ".", "..", "..a", "a=b", "a b"].map(str::to_owned).into(),
        ),
        (
            "config key",
            is_config_map_key,
            ["a", "good", ".foo", "foo.bar_baz-1"].map(str::to_owned).into(),
            [".", "..", "..bad", "b*d", "bad!&bad", &long(254)].map(str::to_owned).into(),
        ),
        (
            "percent",
            is_valid_percent,
            ["0%", "00000%", "101%"].map(str::to_owned).into(),
            ["", "%", "1", "1.5%", "-1%", "1%%"].map(str::to_owned).into(),
        ),
    ];
    for (what, check, good, bad) in cases {
        for value in good {
            assert_eq!(check(&value), Vec::<String>::new(), "{what} {value:?}");
        }
        for value in bad {
            assert!(!check(&value).is_empty(), "{what} {value:?} was accepted");
        }
    }
}

#[test]
fn texts_are_upstreams() {
    expect_test::expect![[r#"
        must be no more than 63 characters
        must not contain dots
        a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
        prefix part must be non-empty
        name part must be non-empty
        name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
        must be no more than 63 bytes
        must be between 1 and 65535, inclusive
        a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')"#]]
    .assert_eq(
        &[
            is_dns1123_label(&"a".repeat(64)),
            is_dns1123_label("a.b"),
            is_dns1123_label("A"),
            is_qualified_name("/"),
            is_label_value(&"a".repeat(64)),
            is_valid_port_num(0),
            is_valid_percent("x"),
        ]
        .concat()
        .join("\n"),
    );
}

#[test]
fn generate_name_may_end_with_a_dash() {
    assert!(name_is_dns_label("web-", true).is_empty());
    assert!(!name_is_dns_label("web-", false).is_empty());
    assert!(!name_is_dns_label("-", true).is_empty());
    assert!(!name_is_dns_label("ą-", true).is_empty());
}

#[test]
fn addresses_old_and_new() {
    let path = Path::new("ip");
    let texts = |errors: ErrorList| errors.iter().map(Error::body).collect::<Vec<_>>().join("; ");
    let mut out = String::new();
    for value in [
        "1.2.3.4",
        "001.002.003.004",
        "::ffff:1.2.3.4",
        "2001:db8:0::1",
        "2001:DB8::1",
        "1.2.3",
        "1::2::3",
        "a",
        "fe80::1%eth0",
    ] {
        let line = [
            texts(is_valid_ip_for_legacy_field(&path, value, false, &[])),
            texts(is_valid_ip(&path, value)),
            warnings_for_ip(&path, value).join("; "),
        ];
        out.push_str(&format!("{value}: {}\n", line.join(" | ")));
    }
    expect_test::expect![[r#"
        1.2.3.4:  |  | 
        001.002.003.004:  | Invalid value: "001.002.003.004": must not have leading 0s | ip: non-standard IP address "001.002.003.004" is invalid: use "1.2.3.4"
        ::ffff:1.2.3.4:  | Invalid value: "::ffff:1.2.3.4": must not be an IPv4-mapped IPv6 address | ip: non-standard IP address "::ffff:1.2.3.4" is invalid: use "1.2.3.4"
        2001:db8:0::1:  | Invalid value: "2001:db8:0::1": must be in canonical form ("2001:db8::1") | ip: IPv6 address "2001:db8:0::1" should be in RFC 5952 canonical format ("2001:db8::1")
        2001:DB8::1:  | Invalid value: "2001:DB8::1": must be in canonical form ("2001:db8::1") | ip: IPv6 address "2001:DB8::1" should be in RFC 5952 canonical format ("2001:db8::1")
        1.2.3: Invalid value: "1.2.3": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff) | Invalid value: "1.2.3": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff) | 
        1::2::3: Invalid value: "1::2::3": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff) | Invalid value: "1::2::3": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff) | 
        a: Invalid value: "a": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff) | Invalid value: "a": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff) | 
        fe80::1%eth0: Invalid value: "fe80::1%eth0": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff) | Invalid value: "fe80::1%eth0": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff) | 
    "#]]
    .assert_eq(&out);
}

#[test]
fn blocks_old_and_new() {
    let path = Path::new("cidr");
    let texts = |errors: ErrorList| errors.iter().map(Error::body).collect::<Vec<_>>().join("; ");
    let mut out = String::new();
    for value in [
        "10.0.0.0/8",
        "10.0.0.1/8",
        "010.0.0.0/8",
        "10.0.0.0/33",
        "::ffff:1.2.3.0/120",
        "2001:db8:0::/64",
        "0.0.0.0/0",
        "::/0",
        "10.0.0.0",
    ] {
        let line = [
            texts(is_valid_cidr_for_legacy_field(&path, value, false, &[])),
            texts(is_valid_cidr(&path, value)),
            warnings_for_cidr(&path, value).join("; "),
        ];
        out.push_str(&format!("{value}: {}\n", line.join(" | ")));
    }
    expect_test::expect![[r#"
        10.0.0.0/8:  |  | 
        10.0.0.1/8:  | Invalid value: "10.0.0.1/8": must not have bits set beyond the prefix length | cidr: CIDR value "10.0.0.1/8" is ambiguous in this context (should be "10.0.0.0/8" or "10.0.0.1/32"?)
        010.0.0.0/8:  | Invalid value: "010.0.0.0/8": must not have leading 0s in IP or prefix length | cidr: non-standard CIDR value "010.0.0.0/8" is invalid: use "10.0.0.0/8"
        10.0.0.0/33: Invalid value: "10.0.0.0/33": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64) | Invalid value: "10.0.0.0/33": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64) | 
        ::ffff:1.2.3.0/120:  | Invalid value: "::ffff:1.2.3.0/120": must not have an IPv4-mapped IPv6 address | cidr: non-standard CIDR value "::ffff:1.2.3.0/120" is invalid: use "1.2.3.0/24"
        2001:db8:0::/64:  | Invalid value: "2001:db8:0::/64": must be in canonical form ("2001:db8::/64") | cidr: IPv6 CIDR value "2001:db8:0::/64" should be in RFC 5952 canonical format ("2001:db8::/64")
        0.0.0.0/0:  |  | 
        ::/0:  |  | 
        10.0.0.0: Invalid value: "10.0.0.0": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64) | Invalid value: "10.0.0.0": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64) | 
    "#]].assert_eq(&out);
    assert_eq!(texts(is_valid_interface_address(&path, "10.0.0.7/24")), "");
}
