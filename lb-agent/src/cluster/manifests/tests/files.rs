//! What a file may look like.

use super::super::file::{Format, parse};
use super::service;

/// The objects of a good file.
fn objects(text: &str, format: Format) -> Vec<String> {
    let manifests = parse(text, format).unwrap_or_else(|error| panic!("{error:?} in:\n{text}"));
    manifests.into_iter().map(|manifest| format!("{} {}", manifest.line, manifest.object)).collect()
}

#[test]
fn all_documents_and_lists_of_a_file_are_read() {
    let web = service("web", 80);
    let json = |name: &str| {
        format!(
            r#"{{"apiVersion": "v1", "kind": "Service", "metadata": {{"name": "{name}"}}, "spec": {{"clusterIP": "10.96.0.10", "ports": [{{"port": 80}}]}}}}"#
        )
    };
    let (a, b) = (json("a"), json("b"));
    let table: [(&str, String, Format, &[&str]); 13] = [
        ("one document", web.clone(), Format::Yaml, &["1 Service default/web"]),
        ("nothing", String::new(), Format::Yaml, &[]),
        ("only comments", "# nothing\n# here\n".into(), Format::Yaml, &[]),
        ("only a marker", "---\n".into(), Format::Yaml, &[]),
        (
            "several documents, comments and empty ones between",
            format!("# first\n---\n{web}---\n# empty\n---\n{}\n---\n", service("db", 1)),
            Format::Yaml,
            &["3 Service default/web", "14 Service default/db"],
        ),
        (
            "a document that begins without a marker",
            format!("# first\n\n{web}...\n---\n{}", service("db", 1)),
            Format::Yaml,
            &["3 Service default/web", "13 Service default/db"],
        ),
        ("JSON", a.clone(), Format::Json, &["1 Service default/a"]),
        ("no JSON", "\n".into(), Format::Json, &[]),
        (
            "several JSON documents",
            format!("{a}\n{b}"),
            Format::Json,
            &["1 Service default/a", "1 Service default/b"],
        ),
        ("JSON in a YAML file", format!("\t{a}").trim().into(), Format::Yaml, &["1 Service default/a"]),
        (
            "a List",
            format!(r#"{{"apiVersion": "v1", "kind": "List", "items": [{a}, {b}]}}"#),
            Format::Json,
            &["1 Service default/a", "1 Service default/b"],
        ),
        (
            "a list as the API server answers it: its items don't say their kind",
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSliceList\nitems:\n- metadata: {name: s}\n".into(),
            Format::Yaml,
            &["1 EndpointSlice default/s"],
        ),
        (
            "an empty List",
            "apiVersion: v1\nkind: List\nitems: null\n".into(),
            Format::Yaml,
            &[],
        ),
    ];
    for (what, text, format, expected) in table {
        assert_eq!(objects(&text, format), expected, "{what}");
    }
}

#[test]
fn kinds_that_are_not_ours_are_skipped() {
    let text = format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec: {{ports: nonsense}}\n---\n\
         apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{ports: 1}}\n---\n\
         apiVersion: v1\nkind: List\nitems: [{{apiVersion: v1, kind: Pod, metadata: {{name: web}}}}]\n---\n{}",
        service("web", 80)
    );
    assert_eq!(objects(&text, Format::Yaml), ["15 Service default/web"]);
}

#[test]
fn an_invalid_file_names_the_line_and_the_reason() {
    let web = service("web", 80);
    let bomb = (1..30).map(|level| format!("a{level}: &a{level} [*a{0}, *a{0}]\n", level - 1));
    let bomb = format!("a0: &a0 [1, 1]\n{}", bomb.collect::<String>());
    let yaml: [(&str, String, usize, &str); 13] = [
        ("aliases that multiply", bomb, 1, "repetition limit exceeded"),
        ("a pit", "[".repeat(10_000), 1, "is not usable YAML"),
        ("no YAML", "a: [1\nb: }\n".into(), 2, "is not usable YAML"),
        ("text", "hello\n".into(), 1, "is not a Kubernetes object"),
        ("binary", "kind: \u{1}\n".into(), 1, "is not usable YAML"),
        ("a list at the top", format!("{web}---\n- a\n"), 10, "is not a Kubernetes object"),
        ("no kind", format!("{web}---\n# here\na: 1\n"), 10, "has no kind"),
        ("no apiVersion", "kind: Service\n".into(), 1, "has kind Service but no apiVersion"),
        (
            "no name",
            "apiVersion: v1\nkind: Service\nspec: {}\n".into(),
            1,
            "has a Service without metadata.name",
        ),
        (
            "an old API version",
            "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: s}\n".into(),
            1,
            "only discovery.k8s.io/v1 is read",
        ),
        (
            "a field of the wrong type in the second document",
            format!("{web}---\n{}", web.replace("port: 80", "port: eighty")),
            17,
            "invalid type: string \"eighty\"",
        ),
        (
            "a field of the wrong type in a list",
            "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata:\n    name: a\n\
             - apiVersion: v1\n  kind: Service\n  metadata:\n    name: b\n  spec:\n    ports: many\n"
                .into(),
            13,
            "invalid type: string \"many\"",
        ),
        (
            "items that are no list",
            "apiVersion: v1\nkind: List\nitems: 1\n".into(),
            1,
            "has items that are no list",
        ),
    ];
    let json: [(&str, String, usize, &str); 3] = [
        ("no JSON", "{\n\"a\": \n}".into(), 3, "is not usable JSON"),
        ("half a file", "{\"apiVersion\": \"v1\",\n".into(), 2, "is not usable JSON"),
        (
            "a field of the wrong type in the second document",
            "{\"apiVersion\": \"v1\", \"kind\": \"Pod\"}\n{\"apiVersion\": \"v1\", \"kind\": \"Service\",\n\"spec\": 1}".into(),
            3,
            "invalid type: integer `1`",
        ),
    ];
    let yaml = yaml.into_iter().map(|row| (row, Format::Yaml));
    for ((what, text, line, reason), format) in
        yaml.chain(json.into_iter().map(|row| (row, Format::Json)))
    {
        let error = parse(&text, format).expect_err(what);
        assert!(error.reason.contains(reason), "{what}: {error:?}");
        assert_eq!(error.line, line, "{what}: {error:?}");
    }
}

#[test]
fn a_slice_port_without_name_has_the_empty_name_as_the_api_server_would_give_it() {
    let text = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.0.0.1]}]
";
    let manifests = parse(text, Format::Yaml).unwrap();
    assert_eq!(manifests[0].problems, []);
    let super::super::file::Content::Slice(Some(slice)) = &manifests[0].content else {
        panic!("{manifests:?}");
    };
    assert_eq!(*slice.ports[0].name, *"");
}
