use super::*;

#[test]
fn queries_are_decoded() {
    let query = Query("method=GET&header=a%3A+b&header=c&url=http%3A%2F%2Fx%2F%3Fq%3D1&bad=%zz%4");
    assert_eq!(query.first("method").as_deref(), Some("GET"));
    assert_eq!(query.all("header").collect::<Vec<_>>(), ["a: b", "c"]);
    assert_eq!(query.first("url").as_deref(), Some("http://x/?q=1"));
    assert_eq!(query.first("bad").as_deref(), Some("%zz%4"));
    assert_eq!(query.first("none"), None);
}
