use crate::world::World;
use driftless_test_support::{Process, guarded};

#[tokio::test(flavor = "multi_thread")]
async fn changed_fields_are_printed_and_bad_values_ignored() {
    let world = World::holding(&[("/config/shop/prices/tea", "250")]).await;
    let bin = env!("CARGO_BIN_EXE_typed_hot_reload");
    let mut program = Process::spawn(guarded(bin).arg(world.url()));

    // Each edit is one revision, and this etcd has no other writer.
    let first = [
        "revision 2",
        "  currency: none → \"EUR\"",
        "  limits.burst: none → 20",
        "  limits.rps: none → 10",
        "  prices.tea: none → 250",
    ];
    program.out.expect(&first);
    world.put("/config/shop/limits/rps", "15");
    let one = ["revision 3", "  limits.rps: 10 → 15"];
    program.out.expect(&one);

    let edits = [
        ("/config/shop/banner", "Sale!"),
        ("/config/shop/prices/tea", "200"),
        ("/config/shop/prices/herbs/mint", "150"),
    ];
    world.put_all(&edits);
    let together = [
        "revision 4",
        "  banner: none → \"Sale!\"",
        "  prices.herbs/mint: none → 150",
        "  prices.tea: 250 → 200",
    ];
    program.out.expect(&together);

    world.put("/config/shop/limits/rps", "canary-7421");
    let refused = [
        "revision 5 refused: type",
        "  key: /config/shop/limits/rps",
        "  field: limits.rps",
    ];
    program.out.expect(&refused);
    let why = program.out.line();
    let expected = "expected an integer (u32), found text that is no number";
    assert!(why.ends_with(expected), "{why}");
    let kept = ["  still used: revision 4"];
    program.out.expect(&kept);

    // It decodes, and makes no sense.
    world.put("/config/shop/limits/rps", "50");
    let refused = [
        "revision 6 refused: invalid",
        "  the service's validation refused it: limits.burst must be at least limits.rps",
        "  still used: revision 4",
    ];
    program.out.expect(&refused);

    world.put("/config/shop/limits/burst", "60");
    let mended = [
        "revision 7",
        "  limits.burst: 20 → 60",
        "  limits.rps: 15 → 50",
    ];
    program.out.expect(&mended);

    world.delete("/config/shop/banner");
    let deleted = ["revision 8", "  banner: \"Sale!\" → none"];
    program.out.expect(&deleted);
    let said = program.printed();
    assert!(!said.contains("canary"), "{said}");
}

#[tokio::test]
async fn wrong_url_is_explained() {
    let bin = env!("CARGO_BIN_EXE_typed_hot_reload");
    let mut program = Process::spawn(guarded(bin).arg("http://127.0.0.1:7400/path"));
    assert!(!program.end().success());
    let said = program.err.line();
    assert!(said.starts_with("typed_hot_reload: endpoint "), "{said}");
}
