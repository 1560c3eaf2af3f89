//go:build !mutant_waiting_dropped

package fsm

// mutantWaitingDropped leaves the outcomes that wait for a revision out of labels.
const mutantWaitingDropped = false
