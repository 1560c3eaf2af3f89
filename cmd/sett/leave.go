package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/settkv/sett/client"
)

func (a *app) leaveCommand() *cobra.Command {
	var id string
	var o client.MemberOptions
	cmd := &cobra.Command{
		Use:   "leave",
		Short: "Take a node out of the cluster for good: the one at --endpoints, or --id",
		Long: `Take a node out of the cluster for good: the node at the endpoint, of which there
must be exactly one, or the one that --id names. The node stops serving; it comes
back only when asked to, with sett join. To stop a node for a while, send it SIGTERM.`,
		Args: cobra.NoArgs,
	}
	conn := a.connectionFlags(cmd)
	cmd.Flags().StringVar(&id, "id", "", "id of the node (default the node at the endpoint)")
	cmd.Flags().BoolVar(&o.Force, "force", false, "also if too few live voters are left")
	onceFlag(cmd, &o.IdempotencyKey)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return conn.do(cmd, func(ctx context.Context, cl *client.Client) error {
			if id == "" {
				if len(cl.Endpoints()) != 1 {
					return usagef("--endpoints names several nodes: name the one that leaves with --id, or its endpoint only")
				}
				s, err := cl.Status(ctx)
				if err != nil {
					return err
				}
				id = s.ID
			}
			return conn.remove(ctx, cl, id, o)
		})
	}
	return cmd
}

// remove takes a server out and says so.
func (c *connection) remove(ctx context.Context, cl *client.Client, id string, o client.MemberOptions) error {
	if err := cl.RemoveMember(ctx, id, o); err != nil {
		return err
	}
	if c.output == outputJSON {
		return printJSON(c.app.out, struct {
			Removed string `json:"removed"`
		}{id})
	}
	_, err := fmt.Fprintf(c.app.out, "%s is no longer a member\n", id)
	return err
}
