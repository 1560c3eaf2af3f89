package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/settkv/sett/client"
)

func (a *app) removeCommand() *cobra.Command {
	var o client.MemberOptions
	cmd := &cobra.Command{
		Use:   "remove ID",
		Short: "Take a server out of the cluster for good",
		Args:  cobra.ExactArgs(1),
	}
	conn := a.connectionFlags(cmd)
	cmd.Flags().BoolVar(&o.Force, "force", false, "also if too few live voters are left")
	onceFlag(cmd, &o.IdempotencyKey)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return conn.do(cmd, func(ctx context.Context, cl *client.Client) error {
			return conn.remove(ctx, cl, args[0], o)
		})
	}
	return cmd
}
