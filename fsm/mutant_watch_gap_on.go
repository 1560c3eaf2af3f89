//go:build mutant_watch_gap

package fsm

// mutantWatchGap forgets the watchers when revisions were never in memory.
const mutantWatchGap = true
