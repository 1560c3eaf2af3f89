package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/settkv/sett/client"
)

func (a *app) demoteCommand() *cobra.Command {
	var o client.MemberOptions
	cmd := &cobra.Command{
		Use:   "demote ID",
		Short: "Make a voter a read replica",
		Args:  cobra.ExactArgs(1),
	}
	conn := a.connectionFlags(cmd)
	cmd.Flags().BoolVar(&o.Force, "force", false, "also if too few live voters are left")
	onceFlag(cmd, &o.IdempotencyKey)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return conn.do(cmd, func(ctx context.Context, cl *client.Client) error {
			m, err := cl.Demote(ctx, args[0], o)
			if err != nil {
				return err
			}
			return conn.printMember(m, "%s is a read replica", args[0])
		})
	}
	return cmd
}
