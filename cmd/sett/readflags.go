package main

import (
	"github.com/spf13/cobra"

	"github.com/settkv/sett/config"
	"github.com/settkv/sett/kv"
)

// reading holds the flags of commands that read.
type reading struct {
	cmd                       *cobra.Command
	revision, minRevision     uint64
	consistency, maxStaleness string
}

func readFlags(cmd *cobra.Command) *reading {
	r := &reading{cmd: cmd}
	fs := cmd.Flags()
	fs.Uint64Var(&r.revision, "revision", 0, "read the past, as it was at this revision (default the newest)")
	fs.Uint64Var(&r.minRevision, "min-revision", 0, "wait until the node has reached this revision")
	fs.StringVar(&r.consistency, "consistency", "linearizable", "linearizable, leader or stale")
	fs.StringVar(&r.maxStaleness, "max-staleness", "", "with --consistency stale: refuse a node that may lag more, such as 5s")
	return r
}

func (r *reading) options() (kv.ReadOptions, error) {
	o := kv.ReadOptions{Revision: kv.Revision(r.revision), MinRevision: kv.Revision(r.minRevision)}
	if r.revision == 0 && r.cmd.Flags().Changed("revision") {
		return o, usagef("bad value 0 for --revision: revisions begin at 1; leave it out to read the newest")
	}
	var ok bool
	if o.Consistency, ok = kv.ParseConsistency(r.consistency); !ok {
		return o, usagef("bad value %q for --consistency: want linearizable, leader or stale", r.consistency)
	}
	if r.maxStaleness == "" {
		return o, nil
	}
	var err error
	if o.MaxStaleness, err = config.ParseDuration(r.maxStaleness); err != nil {
		return o, usagef("bad value %q for --max-staleness: %w", r.maxStaleness, err)
	}
	return o, nil
}
