//! A fence leaves no KEK in the process's memory. Its own program, so that nothing else runs.

#![allow(clippy::unwrap_used)] // A panic is the report of a test.

mod common;

use common::*;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

/// How often the bytes whose complement is `inverted` stand in this process's memory. The needle
/// itself is never stored as it is, or it would find itself.
fn copies(inverted: &[u8; 32]) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut memory = File::open("/proc/self/mem").unwrap();
    let mut chunk = vec![0u8; 1 << 20];
    let mut found = 0;
    for line in maps.lines() {
        let mut words = line.split(' ');
        let (Some(range), Some(mode)) = (words.next(), words.next()) else { continue };
        if !mode.starts_with("rw") {
            continue;
        }
        let (from, to) = range.split_once('-').unwrap();
        let from = u64::from_str_radix(from, 16).unwrap();
        let to = u64::from_str_radix(to, 16).unwrap();
        let mut at = from;
        while at < to {
            let len = chunk.len().min((to - at) as usize);
            memory.seek(SeekFrom::Start(at)).unwrap();
            let Ok(()) = memory.read_exact(&mut chunk[..len]) else { break };
            found += chunk[..len]
                .windows(32)
                .filter(|w| w.iter().zip(inverted).all(|(a, b)| *a == !*b))
                .count();
            chunk[..len].fill(0);
            // Overlapping, so that a key across two chunks is seen.
            at += (len as u64).saturating_sub(31).max(1);
            if at + 31 >= to {
                break;
            }
        }
    }
    found
}

#[tokio::test]
async fn a_fence_wipes_every_kek() {
    let root = Root::new();
    let served = serve(&root);
    let (one, two) = (root.mint(1), root.mint(2));
    let inverted = [one.1.expose().map(|b| !b), two.1.expose().map(|b| !b)];
    served.plugin.set(root.ring(1, &[&one, &two]));
    // Under a ring of its own, so that KEK 1 is resolved from the annotation.
    let mut client = client(&served.path).await;
    served.plugin.set(root.ring(2, &[&one]));
    let sealed = encrypt(&mut client, &[7; 32]).await.unwrap();
    served.plugin.set(root.ring(3, &[&two]));
    assert_eq!(decrypt(&mut client, stored(&sealed)).await.unwrap(), [7; 32]);
    drop((one, two));
    let before = inverted.each_ref().map(copies);
    assert!(before.iter().all(|n| *n > 0), "the search must find what is there: {before:?}");
    served.plugin.fence("suspended");
    assert_eq!(inverted.each_ref().map(copies), [0, 0]);
}
