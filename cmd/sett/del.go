package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/settkv/sett/client"
)

func (a *app) delCommand() *cobra.Command {
	var match string
	var o client.WriteOptions
	cmd := &cobra.Command{
		Use:   "del KEY",
		Short: "Delete a key; exit code 3 if there is none",
		Args:  cobra.ExactArgs(1),
	}
	conn := a.connectionFlags(cmd)
	cmd.Flags().StringVar(&match, "if-match", "", "only if the key's revision is this one; * is any")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := parseMatch(match, &o); err != nil {
			return err
		}
		return conn.do(cmd, func(ctx context.Context, cl *client.Client) error {
			r, err := cl.Delete(ctx, args[0], o)
			if err != nil {
				return err
			}
			return conn.printWrite("deleted", r)
		})
	}
	return cmd
}
