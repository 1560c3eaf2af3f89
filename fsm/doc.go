// Package fsm is Sett's replicated state machine: the only thing that changes data,
// changed only by the Raft log. It decodes entries, evaluates commands, writes each
// revision through the engine, and answers reads at any kept revision.
//
// What it keeps, and where:
//
//   - Data (keys, values, history, change index, expiry index) goes to the engine,
//     one Badger timestamp per revision. The state of a revision (applied index,
//     term, cluster clock, number of keys) is inside its newest change-index record,
//     so that data, revision, applied index and digest move together.
//   - Outcomes of writes with an idempotency key go there too, with the revision that
//     they made (ADR 0011).
//   - Small replicated state (cluster id, settings, member records, pins, the cluster
//     clock, staged chunks of big commands, outcomes that made no revision) lives in
//     memory. It is rebuilt at start from the label of the last Raft snapshot and the
//     entries after it, which Raft delivers again; entries whose data is already there
//     are skipped by index.
//
// Apply is a pure function of state and log: it reads no clock, no configuration
// and no environment (Invariant 14). It does not know HTTP, Raft's consensus or
// gossip. Package node wires it.
package fsm
