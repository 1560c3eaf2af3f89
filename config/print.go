package config

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// Print writes every setting, its value in force and where that came from, as a
// table. Gossip keys are redacted.
func (l *Loaded) Print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "SETTING\tVALUE\tSOURCE")
	for _, s := range table() {
		value := s.binding.show(&l.Config)
		if value == "" {
			value = "-"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\n", s.name, value, l.sources[s.name])
	}
	return tw.Flush()
}

// Source tells where the value of a setting came from: "default", "env SETT_RAFT_ADDR",
// "flag --raft-addr" or "yaml FILE:LINE", sometimes with a remark after a comma.
func (l *Loaded) Source(name string) string { return l.sources[name] }
