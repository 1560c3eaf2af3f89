package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/settkv/sett/client"
	"github.com/settkv/sett/kv"
)

func (a *app) membersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "members",
		Short: "List the servers of the cluster, as the leader sees them",
		Args:  cobra.NoArgs,
	}
	conn := a.connectionFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return conn.do(cmd, func(ctx context.Context, cl *client.Client) error {
			info, err := cl.Cluster(ctx)
			if err != nil {
				return err
			}
			if conn.output == outputJSON {
				return printJSON(a.out, struct {
					ID      string      `json:"id"`
					Name    string      `json:"name"`
					Leader  string      `json:"leader"`
					Term    uint64      `json:"term"`
					Members []kv.Member `json:"members"`
				}{info.ID, info.Name, info.Leader, info.Term, info.Members})
			}
			rows := [][]string{{"ID", "ROLE", "VOTER", "STATE", "APPLIED", "LAG", "HTTP", "RAFT", "GOSSIP", "VERSION", "SERVER ID"}}
			for _, m := range info.Members {
				rows = append(rows, []string{
					m.ID, m.Role, yesNo(m.Voter), m.State, fmt.Sprint(m.AppliedIndex), fmt.Sprint(m.Lag),
					m.HTTPAddr, m.RaftAddr, m.GossipAddr, m.Version, m.ServerID,
				})
			}
			return printTable(a.out, conn.output, rows)
		})
	}
	return cmd
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// printMember writes the answer to a change of one member.
func (c *connection) printMember(m kv.Member, format string, args ...any) error {
	if c.output == outputJSON {
		return printJSON(c.app.out, m)
	}
	_, err := fmt.Fprintf(c.app.out, format+"\n", args...)
	return err
}
