package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/settkv/sett/client"
	"github.com/settkv/sett/kv"
)

func (a *app) joinCommand() *cobra.Command {
	var spec kv.MemberSpec
	var nonvoter bool
	var o client.OnceOptions
	cmd := &cobra.Command{
		Use:   "join --id ID --raft-addr ADDR --http-addr ADDR",
		Short: "Take a running node into the cluster",
		Long: `Take a node into the cluster that --endpoints names. The node must run, with
neither data nor another cluster. It becomes a voter once it has caught up, unless
--nonvoter keeps it a read replica.`,
		Args: cobra.NoArgs,
	}
	conn := a.connectionFlags(cmd)
	cmd.Flags().StringVar(&spec.ID, "id", "", "the node's id")
	cmd.Flags().StringVar(&spec.RaftAddr, "raft-addr", "", "the node's Raft address, host:port")
	cmd.Flags().StringVar(&spec.HTTPAddr, "http-addr", "", "the node's HTTP address, host:port")
	cmd.Flags().BoolVar(&nonvoter, "nonvoter", false, "keep it a read replica")
	onceFlag(cmd, &o.IdempotencyKey)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if spec.ID == "" || spec.RaftAddr == "" || spec.HTTPAddr == "" {
			return usagef("join needs --id, --raft-addr and --http-addr of the node to take in")
		}
		spec.Voter = !nonvoter
		return conn.do(cmd, func(ctx context.Context, cl *client.Client) error {
			m, err := cl.AddMember(ctx, spec, o)
			if err != nil {
				return err
			}
			if m.Voter || nonvoter {
				return conn.printMember(m, "%s is a member", spec.ID)
			}
			return conn.printMember(m, "%s is a member; it becomes a voter once it has caught up", spec.ID)
		})
	}
	return cmd
}
