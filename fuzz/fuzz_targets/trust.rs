//! Any text as a trust store.
#![no_main]

use libfuzzer_sys::fuzz_target;
use preface_bundle::{PublicKey, TrustStatement, TrustStore};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(store) = TrustStore::parse(text) else {
        return;
    };
    let keys: Vec<PublicKey> = store.keys().map(|key| key.key).collect();
    assert!(!keys.is_empty() && (1..=keys.len()).contains(&store.threshold()));
    assert!(store.version() > 0);
    for key in store.keys() {
        assert_eq!(key.id, key.key.id());
        assert_eq!(PublicKey::from_text(&key.key.to_string()), Ok(key.key));
        let _ = key.may_sign("intent");
    }
    let again = TrustStore::parse_among(text, &keys).expect("the same text");
    assert!(again.keys().map(|key| key.key).eq(keys.iter().copied()));
    let _ = (
        store.revoked_keys().count(),
        store.revoked_bundles().count(),
    );
    assert!(TrustStatement::of(&store).as_bytes().ends_with(b"\n"));
    assert!(store.admit_update(&store, &[]).is_err(), "nobody signed it");
    assert!(store.admit_update(&store, &[[0; 64], [0xff; 64]]).is_err());
});
