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

/// An interface as Elastic Load Balancing or ECS makes it: of no instance.
fn made_by_a_service(description: &str) -> Interface {
    let mut i = interface(&[]);
    (i.instance, i.instance_id, i.primary) = (None, None, false);
    (i.requester_managed, i.description) = (true, description.to_owned());
    i
}

#[test]
fn a_secondary_interface_of_the_cni_is_of_the_cluster_by_its_node_or_by_its_own_tags() {
    let s = parse("eks:prod/workers");
    let node = [
        ("eks:cluster-name", "prod"),
        ("eks:nodegroup-name", "workers"),
    ];
    let mut secondary = interface(&node);
    secondary.primary = false;
    secondary.description = "aws-K8S-i-1234567890abcdef0".to_owned();
    assert!(s.selects(&secondary));
    // The node could not be described yet, but the CNI tags what it adds.
    secondary.instance = None;
    secondary.tags.insert(
        "cluster.k8s.amazonaws.com/name".to_owned(),
        "prod".to_owned(),
    );
    assert!(parse("eks:prod").selects(&secondary));
    assert!(!parse("eks:dev").selects(&secondary));
    assert!(
        !s.selects(&secondary),
        "the group is known from the node alone"
    );
}

#[test]
fn ecs_selects_the_interfaces_of_the_tasks_of_a_cluster() {
    let s = parse("ecs:prod*");
    let mut task = made_by_a_service("arn:aws:ecs:eu-west-1:1:attachment/1f");
    assert!(!s.selects(&task));
    task.ties.cluster = Some("prod-blue".to_owned());
    assert!(s.selects(&task));
    assert!(!parse("ecs:dev").selects(&task));
    task.ties.cluster = None;
    task.tags
        .insert("aws:ecs:clusterName".to_owned(), "prod".to_owned());
    assert!(s.selects(&task), "ECS managed tags say it too");
}

#[test]
fn elb_selects_what_is_registered_with_a_classic_load_balancer() {
    let mut i = interface(&[]);
    assert!(!parse("elb:legacy").selects(&i));
    i.ties.balancers = vec!["other".to_owned(), "legacy".to_owned()];
    assert!(parse("elb:legacy").selects(&i));
    assert!(parse("elb:leg*").selects(&i));
    assert!(!parse("elb:app/legacy").selects(&i));
    assert!(!parse("vpc:vpc-*, !elb:legacy").selects(&i));
}

#[test]
fn the_own_interfaces_of_a_load_balancer_are_named_by_kind() {
    let alb = made_by_a_service("ELB app/web/50dc6c495c0c9188");
    let classic = made_by_a_service("ELB web");
    let nlb = made_by_a_service("ELB net/web/50dc6c495c0c9188");
    let mut faked = alb.clone();
    faked.requester_managed = false;
    for (text, of_alb, of_classic) in [
        ("elb:app/web", true, false),
        ("elb:app/w*", true, false),
        ("elb:app/api", false, false),
        ("elb:classic/web", false, true),
        ("elb:web", false, false),
    ] {
        let s = parse(text);
        assert_eq!(s.selects(&alb), of_alb, "{text}");
        assert_eq!(s.names_its_balancer(&alb), of_alb, "{text}");
        assert_eq!(s.selects(&classic), of_classic, "{text}");
        assert!(!s.selects(&nlb) && !s.selects(&faked), "{text}");
    }
    // Selected by something else, it is not named; and a term that excludes names nothing.
    assert!(!parse("vpc:vpc-1").names_its_balancer(&alb));
    assert!(parse("vpc:vpc-1, elb:app/web").names_its_balancer(&alb));
    assert!(!parse("vpc:vpc-1, elb:app/web & subnet:subnet-9").names_its_balancer(&alb));
    assert!(!parse("vpc:vpc-1, !elb:app/api").names_its_balancer(&alb));
}

#[test]
fn it_says_what_must_be_looked_up_for_it() {
    let s = parse("tag:a, elb:app/web");
    assert!(!s.asks_for_classic_members() && s.clusters().next().is_none());
    let s = parse("tag:a, !elb:legacy, ecs:prod");
    assert!(s.asks_for_classic_members());
    assert_eq!(
        s.clusters().map(Pattern::to_string).collect::<Vec<_>>(),
        ["prod"]
    );
}

#[test]
fn the_first_group_that_holds_is_the_one_that_is_named() {
    let s = parse("tag:a, tag:b, vpc:vpc-1");
    let at = |tags: &[(&str, &str)]| match s.judge(&interface(tags)) {
        Judgement::Selected(at, _) => at,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        (at(&[("b", ""), ("a", "")]), at(&[("b", "")]), at(&[])),
        (0, 1, 2)
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
            "tag:a=1, elb:net/web",
            14,
            "no kind of load balancer that can be mirrored",
        ),
        ("elb:", 5, "a value is missing"),
        ("elb:app/", 9, "a value is missing"),
        ("elb:app/a/b", 10, "unexpected `/`"),
        ("ecs:", 5, "a value is missing"),
        ("ecs:prod/web", 9, "unexpected `/`"),
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
        pattern("").prop_map(Kind::Ecs),
        pattern("").prop_map(Kind::BehindClassic),
        pattern("").prop_map(|p| Kind::Balancer(BalancerKind::Application, p)),
        pattern("").prop_map(|p| Kind::Balancer(BalancerKind::Classic, p)),
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
