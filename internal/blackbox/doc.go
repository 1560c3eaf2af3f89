// Package blackbox is a user of a Sett cluster who trusts nothing: it writes over
// plain HTTP, remembers exactly which writes were acknowledged, which were refused
// and which are in doubt, and later holds every node to it.
//
// The real-process fault tests (internal/faulttest) and the container test
// (scripts/compose-smoke.sh, through scripts/smoke) share it. It imports nothing
// of the server, so a bug there cannot hide itself here.
//
// What a Ledger holds a cluster to:
//   - an acknowledged write is there, with the value and the revision it was
//     acknowledged with, until a later write of the same key;
//   - a write answered "not-applied" is nowhere;
//   - a write in doubt is either there or not, as a whole;
//   - no two acknowledged writes share a revision, and a writer's own revisions
//     grow;
//   - the version of a key that is only ever put counts its puts;
//   - a linearizable read during the load already obeys all this;
//   - every failed write says its outcome.
//
// Each key has one writer that never has two writes at work at once; that is what
// makes these checks exact without a search over histories.
package blackbox
