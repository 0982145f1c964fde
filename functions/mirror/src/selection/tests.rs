use super::*;
use crate::fake;
use proptest::prelude::*;

fn parse(text: &str) -> Selection {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn refused(text: &str) -> ParseError {
    text.parse::<Selection>().expect_err(text)
}

/// An interface of an instance: `vpc-1`, `subnet-1`, with these tags on the instance.
fn interface(tags: &[(&str, &str)]) -> Interface {
    let mut interface = fake::interface("eni-1", "i-1");
    if let Some(instance) = &mut interface.instance {
        instance.tags = tags
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
    }
    interface
}

#[test]
fn the_expression_of_the_design_means_what_it_says() {
    let text = "tag:Mirror=true & vpc:vpc-1, asg:web-*, eks:prod/workers, !tag:env=dev";
    let s = parse(text);
    let cases: &[(&[(&str, &str)], bool)] = &[
        (&[("Mirror", "true")], true),
        (&[("Mirror", "false")], false),
        (&[("mirror", "true")], false),
        (&[("aws:autoscaling:groupName", "web-blue")], true),
        (&[("aws:autoscaling:groupName", "api")], false),
        (
            &[
                ("eks:cluster-name", "prod"),
                ("eks:nodegroup-name", "workers"),
            ],
            true,
        ),
        (
            &[("eks:cluster-name", "prod"), ("eks:nodegroup-name", "gpu")],
            false,
        ),
        (
            &[
                ("kubernetes.io/cluster/prod", "owned"),
                ("karpenter.sh/nodepool", "workers"),
            ],
            true,
        ),
        (&[("Mirror", "true"), ("env", "dev")], false),
        (
            &[("aws:autoscaling:groupName", "web-1"), ("env", "dev")],
            false,
        ),
        (&[], false),
    ];
    for (tags, selected) in cases {
        assert_eq!(s.selects(&interface(tags)), *selected, "{tags:?}");
    }
    let mut elsewhere = interface(&[("Mirror", "true")]);
    elsewhere.vpc = "vpc-2".to_owned();
    assert!(!s.selects(&elsewhere));
}

#[test]
fn a_tag_counts_on_the_interface_as_on_its_instance() {
    let s = parse("tag:Mirror=true, !tag:Mirror=never");
    let mut i = interface(&[]);
    i.tags.insert("Mirror".to_owned(), "true".to_owned());
    assert!(s.selects(&i));
    let mut i = interface(&[("Mirror", "true")]);
    i.tags.insert("Mirror".to_owned(), "never".to_owned());
    assert!(!s.selects(&i));
}

#[test]
fn a_secondary_interface_is_left_out_by_interface_primary() {
    let s = parse("tag:Mirror=true & interface:primary");
    let mut i = interface(&[("Mirror", "true")]);
    assert!(s.selects(&i));
    i.primary = false;
    assert!(!s.selects(&i));
    assert!(parse("tag:Mirror=true & interface:all").selects(&i));
    assert!(
        !parse("tag:Mirror=true & !interface:primary").selects(&interface(&[("Mirror", "true")]))
    );
}

#[test]
fn a_bang_excludes_from_every_group_wherever_it_stands() {
    let s = parse("tag:a=1 & !tag:x, tag:b=1");
    assert!(s.selects(&interface(&[("b", "1")])));
    assert!(!s.selects(&interface(&[("b", "1"), ("x", "")])));
    assert!(
        matches!(s.judge(&interface(&[("x", ""), ("a", "1")])), Judgement::Excluded(t) if t.to_string() == "!tag:x")
    );
}

#[test]
fn values_may_be_quoted_and_hold_stars() {
    let s = parse(r#"tag:"my key"="a, b & \"c\" \* *""#);
    assert!(s.selects(&interface(&[("my key", "a, b & \"c\" * anything")])));
    assert!(!s.selects(&interface(&[("my key", "a, b & \"c\" x anything")])));
    assert!(parse(r#"tag:k="""#).selects(&interface(&[("k", "")])));
    assert!(!parse(r#"tag:k="""#).selects(&interface(&[("k", "v")])));
    assert!(
        parse("tag:aws:cloudformation:stack-name=a=b/c:d@e").selects(&interface(&[(
            "aws:cloudformation:stack-name",
            "a=b/c:d@e"
        )]))
    );
}

#[test]
fn an_error_names_the_column_and_the_remedy() {
    let table = [
        ("", 1, "a term is missing"),
        ("   ", 4, "a term is missing"),
        ("tag:a=1,", 9, "a term is missing"),
        ("tag:a=1 & ", 11, "a term is missing"),
        ("tag:a=1 tag:b=2", 9, "unexpected `t`"),
        (
            "tag:a=1, elb:legacy",
            10,
            "`elb:` is not supported by this version",
        ),
        ("ecs:prod", 1, "`ecs:` is not supported"),
        ("colour:red", 1, "`colour:` is not a term"),
        ("true", 1, "`true` is not a term"),
        ("!tag:env=dev", 1, "only `!` terms"),
        ("!tag:a, !tag:b & !tag:c", 1, "only `!` terms"),
        ("tag:=x", 5, "a value is missing"),
        ("tag:a*=x", 5, "cannot hold `*`"),
        ("tag:a=", 7, "a value is missing"),
        ("vpc:prod", 5, "is not such an id"),
        ("tag:ü=1, instance:web", 19, "is not such an id"),
        ("interface:primary", 1, "restricts"),
        ("tag:a=1, interface:primary", 10, "restricts"),
        ("tag:a=1 & interface:second", 21, "no such interface"),
        ("tag:a=1 & !interface:all", 12, "exclude everything"),
        ("tag:a=\"x", 7, "never closed"),
        ("tag:a=\"x\\", 7, "never closed"),
        ("tag:a=\"\\n\"", 8, "means nothing"),
        ("tag:a=(x)", 7, "a value is missing"),
        ("!!tag:a", 2, "unexpected `!`"),
    ];
    for (text, column, what) in table {
        let e = refused(text);
        assert_eq!(e.column, column, "{text}: {e}");
        assert!(e.what.contains(what), "{text}: {e}");
        assert!(
            !e.remedy.is_empty() && !e.to_string().contains('\n'),
            "{text}: {e}"
        );
    }
}

#[test]
fn the_caps_on_length_and_terms_are_reached() {
    let at_cap = format!("tag:a={}", "x".repeat(MAX_BYTES - 6));
    assert!(at_cap.parse::<Selection>().is_ok());
    assert!(refused(&format!("{at_cap}x")).what.contains("4097 bytes"));
    let terms = |n: usize| vec!["tag:a"; n].join(",");
    assert!(terms(MAX_TERMS).parse::<Selection>().is_ok());
    assert!(
        refused(&terms(MAX_TERMS + 1))
            .what
            .contains("more than 200")
    );
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{1,4}", "[ -~]{0,6}", "[a-z*,&!\"\\\\/= ü]{0,5}"]
}

fn pattern(prefix: &'static str) -> impl Strategy<Value = Pattern> {
    proptest::collection::vec(text(), 1..3).prop_map(move |mut pieces| {
        if let Some(first) = pieces.first_mut() {
            first.insert_str(0, prefix);
        }
        Pattern::from_pieces(pieces)
    })
}

fn kind() -> impl Strategy<Value = Kind> {
    let key = text().prop_filter("a key", |k| !k.is_empty());
    prop_oneof![
        (key, proptest::option::of(pattern(""))).prop_map(|(k, v)| Kind::Tag(k, v)),
        pattern("vpc-").prop_map(Kind::Vpc),
        pattern("subnet-").prop_map(Kind::Subnet),
        pattern("eni-").prop_map(Kind::Eni),
        pattern("i-").prop_map(Kind::Instance),
        pattern("").prop_map(Kind::Asg),
        (pattern(""), proptest::option::of(pattern(""))).prop_map(|(c, g)| Kind::Eks(c, g)),
    ]
}

fn selection() -> impl Strategy<Value = Selection> {
    let term = (any::<bool>(), kind()).prop_map(|(negated, kind)| Term { negated, kind });
    let group =
        (proptest::collection::vec(term, 1..4), any::<bool>()).prop_map(|(mut group, primary)| {
            if primary && selects(&group) {
                group.push(Term {
                    negated: false,
                    kind: Kind::Primary,
                });
            }
            group
        });
    proptest::collection::vec(group, 1..4)
        .prop_map(|groups| Selection { groups })
        .prop_filter("something is selected", |s| {
            !s.groups.iter().flatten().all(|t| t.negated)
        })
}

/// Small alphabets, so that terms do hold.
fn any_interface() -> impl Strategy<Value = Interface> {
    let tags = proptest::collection::btree_map("[ab]", "[xy]{0,2}", 0..3);
    (tags.clone(), tags, any::<bool>(), "vpc-[12]").prop_map(|(own, of_instance, primary, vpc)| {
        let mut i = interface(&[]);
        i.tags = own;
        i.primary = primary;
        i.vpc = vpc;
        if let Some(instance) = &mut i.instance {
            instance.tags = of_instance;
        }
        i
    })
}

fn small_term() -> impl Strategy<Value = String> {
    prop_oneof!["tag:[ab]", "tag:[ab]=[xy*]{1,2}", "vpc:vpc-[12]"]
}

proptest! {
    #[test]
    fn what_is_printed_parses_to_the_same(s in selection()) {
        let printed = s.to_string();
        prop_assert_eq!(printed.parse::<Selection>(), Ok(s), "{}", printed);
    }

    #[test]
    fn no_text_panics_and_every_refusal_points_into_it(text in ".{0,40}|[a-z:,&!\"*= /\\\\]{0,40}") {
        if let Err(e) = text.parse::<Selection>() {
            prop_assert!(e.column >= 1 && e.column <= text.chars().count() + 1);
        }
    }

    #[test]
    fn a_bang_always_wins(base in small_term(), banned in small_term(), i in any_interface()) {
        let holds = parse(&banned).selects(&i);
        for text in [format!("{base}, !{banned}"), format!("!{banned}, {base}"), format!("{base} & !{banned}, {base}")] {
            let expected = parse(&base).selects(&i) && !holds;
            prop_assert_eq!(parse(&text).selects(&i), expected, "{}", text);
        }
    }

    #[test]
    fn comma_is_or_and_ampersand_is_and(a in small_term(), b in small_term(), i in any_interface()) {
        let (in_a, in_b) = (parse(&a).selects(&i), parse(&b).selects(&i));
        prop_assert_eq!(parse(&format!("{a}, {b}")).selects(&i), in_a || in_b);
        prop_assert_eq!(parse(&format!("{a} & {b}")).selects(&i), in_a && in_b);
    }
}
