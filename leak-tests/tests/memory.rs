//! Bytes are counted exactly. Alone in its file: the count is that of the whole process.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use leak_tests::{Allocated, Witness, Witnesses, rounds};

leak_tests::use_jemalloc!();

#[test]
fn allocator_finds_64_bytes_lost_every_hundred_rounds() {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap().block_on(async {
        let allocated = Allocated::by_jemalloc().unwrap();
        let before = allocated.read().await.unwrap();
        let sixty_four = vec![1_u8; 64];
        assert_eq!(allocated.read().await.unwrap(), before + 64);
        drop(sixty_four);
        assert_eq!(allocated.read().await.unwrap(), before);

        let only_bytes = || Witnesses::new().and(allocated);
        let outcome = rounds(10_000)
            .only(only_bytes())
            .run(async |_| drop(std::hint::black_box(vec![1_u8; 4096])))
            .await;
        outcome.assert_no_leak();

        let kept = std::cell::RefCell::new(Vec::with_capacity(2_000));
        let keeps_little = async |round| {
            if round % 100 == 0 {
                kept.borrow_mut().push(vec![1_u8; 64]);
            }
        };
        let outcome = rounds(10_000).only(only_bytes()).run(keeps_little).await;
        assert_eq!(outcome.noticed_by(), ["allocated bytes"], "{outcome}");
        let generous = Witnesses::new().and(allocated.with_slack(64 * 100));
        let outcome = rounds(10_000).only(generous).run(keeps_little).await;
        outcome.assert_no_leak();
        assert!(!outcome.repeated);

        let table = std::cell::RefCell::new(Vec::new());
        let outcome = rounds(10_000)
            .only(only_bytes())
            .run(async |round| {
                if round == 5_000 {
                    *table.borrow_mut() = vec![1_u8; 64 * 1024];
                }
            })
            .await;
        outcome.assert_no_leak();
        assert!(outcome.repeated);
    });
}
