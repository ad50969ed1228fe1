//! Entries about stores.

use std::{
    ffi::{CString, c_char, c_void},
    ptr,
};

use preface_runtime::{
    Trust,
    store::{Follower, Served, Store},
};

use crate::{
    border,
    session::{SessionHandle, State, with_session},
};

/// `preface_served`.
#[repr(C)]
pub struct ServedFields {
    size: usize,
    name: *const c_char,
    bundle: *const c_char,
    notes: *const c_char,
    task: usize,
}

/// `preface_hear_served`.
type HearServed = unsafe extern "C" fn(*mut c_void, *const ServedFields);

/// Loads what a store has active and what changed since.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn preface_session_follow(
    session: *mut SessionHandle,
    store: *const c_char,
    trust: *const c_char,
    hear: Option<HearServed>,
    context: *mut c_void,
) -> i32 {
    let work = |state: &mut State| {
        // SAFETY: the caller's strings.
        let (store, trust) =
            unsafe { (border::path(store, "store")?, border::path(trust, "trust")?) };
        let known = state.follower.take();
        let follower = match known.filter(|follower| follower.is_of(store, trust)) {
            Some(follower) => follower,
            None => Follower::new(Store::at(store), Trust::read(trust)?),
        };
        let follower = state.follower.insert(follower);
        for served in follower.follow(&mut state.session)? {
            let task = served.loaded.and_then(|(loaded, _)| {
                let mut tasks = state.session.tasks();
                tasks.position(|(task, _)| task == loaded)
            });
            if let Some(hear) = hear {
                tell(&served, task, |fields| {
                    // SAFETY: the caller's function, with what it wants to be given and a structure whose strings stay
                    // until it returns, which the header asks of it.
                    unsafe { hear(context, fields) }
                });
            }
        }
        Ok(())
    };
    // SAFETY: the caller's handle.
    unsafe { with_session(session, work) }
}

/// Hands `hear` what became of a task, whose number is `task` where it is served.
fn tell(served: &Served, task: Option<usize>, hear: impl FnOnce(&ServedFields)) {
    let name = string(&served.task);
    let bundle = served.loaded.map(|(_, id)| string(&id.to_string()));
    let notes: Vec<String> = served.notes.iter().map(ToString::to_string).collect();
    let notes = string(&notes.join("\n"));
    hear(&ServedFields {
        size: size_of::<ServedFields>(),
        name: name.as_ptr(),
        bundle: bundle
            .as_ref()
            .map_or(ptr::null(), |bundle| bundle.as_ptr()),
        notes: notes.as_ptr(),
        task: task.unwrap_or(0),
    });
}

/// A text as a C string, up to a zero in it.
fn string(text: &str) -> CString {
    let kept = text.bytes().take_while(|&byte| byte != 0);
    CString::new(kept.collect::<Vec<u8>>()).unwrap_or_default()
}
