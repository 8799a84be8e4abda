// A client of Karta in Go: a session, a turn, an approval, a watch that is cut and goes on, an error.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	kartav1 "example.com/karta-client/gen/karta/v1"
)

const (
	// A sequence that a float64 cannot hold.
	beyond = 1<<53 + 1
	// The id of no session.
	nobodys = "00000000-0000-7000-8000-000000000000"
)

type client struct {
	sessions kartav1.SessionServiceClient
	turns    kartav1.TurnServiceClient
}

// report is what the program saw. 64-bit numbers are strings, as in the JSON of protobuf.
type report struct {
	Language        string `json:"language"`
	SessionID       string `json:"session_id"`
	Reused          bool   `json:"reused"`
	FirstText       string `json:"first_text"`
	ApprovedTool    string `json:"approved_tool"`
	FinalText       string `json:"final_text"`
	Events          int    `json:"events"`
	Contiguous      bool   `json:"contiguous"`
	LastSequence    string `json:"last_sequence"`
	UnknownSession  string `json:"unknown_session"`
	CursorBeyondEnd string `json:"cursor_beyond_end"`
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: karta-client ADDRESS PROMPT (one that makes the agent ask for a permission)")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := run(ctx, os.Args[1], os.Args[2]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, address, prompt string) error {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	karta := client{kartav1.NewSessionServiceClient(conn), kartav1.NewTurnServiceClient(conn)}

	created, err := karta.sessions.CreateSession(ctx, &kartav1.CreateSessionRequest{
		Metadata: map[string]string{"customer_id": "go"},
		Reuse:    kartav1.SessionReuse_SESSION_REUSE_LATEST,
	})
	if err != nil {
		return err
	}
	id := created.GetSession().GetSessionId()
	saw := report{Language: "go", SessionID: id, Reused: created.GetReused()}

	if saw.FirstText, err = karta.runTurn(ctx, id, "Hello!"); err != nil {
		return err
	}
	if saw.ApprovedTool, saw.FinalText, err = karta.converse(ctx, id, prompt); err != nil {
		return err
	}
	sequences, err := karta.watchWithACut(ctx, id)
	if err != nil {
		return err
	}
	saw.Events = len(sequences)
	saw.Contiguous = contiguous(sequences)
	saw.LastSequence = strconv.FormatUint(sequences[len(sequences)-1], 10)

	_, err = karta.sessions.GetSession(ctx, &kartav1.GetSessionRequest{SessionId: nobodys})
	if info := errorInfo(err); info.GetReason() == "SESSION_NOT_FOUND" {
		saw.UnknownSession = info.GetMetadata()["session_id"]
	} else {
		return fmt.Errorf("expected SESSION_NOT_FOUND, got %w", err)
	}
	err = karta.watch(ctx, id, beyond, func(*kartav1.Event) bool { return true })
	if info := errorInfo(err); info.GetReason() == "SEQUENCE_OUT_OF_RANGE" {
		saw.CursorBeyondEnd = info.GetMetadata()["after_sequence"]
	} else {
		return fmt.Errorf("expected SEQUENCE_OUT_OF_RANGE, got %w", err)
	}

	if err := json.NewEncoder(os.Stdout).Encode(saw); err != nil {
		return err
	}
	if !saw.Contiguous {
		return errors.New("the log has a gap or a duplicate")
	}
	return nil
}

// runTurn prints the answer while it is written, and returns the final message.
func (c client) runTurn(ctx context.Context, sessionID, text string) (string, error) {
	stream, err := c.turns.RunTurn(ctx, &kartav1.RunTurnRequest{Start: startTurn(sessionID, text)})
	if err != nil {
		return "", err
	}
	final := ""
	for {
		frame, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return final, nil
		}
		if err != nil {
			return "", err
		}
		for _, event := range frame.GetEvents() {
			switch kind := event.GetKind().(type) {
			case *kartav1.Event_Text:
				fmt.Print(kind.Text.GetText())
			case *kartav1.Event_MessageCompleted:
				fmt.Println()
				final = kind.MessageCompleted.GetText()
			case *kartav1.Event_TurnFinished:
				if err := completed(kind.TurnFinished); err != nil {
					return "", err
				}
			}
		}
	}
}

// converse sends a message and allows what the agent asks for, all on one stream.
func (c client) converse(ctx context.Context, sessionID, text string) (tool, final string, err error) {
	stream, err := c.turns.Converse(ctx)
	if err != nil {
		return "", "", err
	}
	// Send reports a broken stream as io.EOF; Recv then has the reason.
	send := func(command *kartav1.ConverseRequest) {
		_ = stream.Send(command)
	}
	send(&kartav1.ConverseRequest{CommandId: "open", Command: &kartav1.ConverseRequest_Open{
		Open: &kartav1.OpenConversation{SessionId: sessionID},
	}})
	send(&kartav1.ConverseRequest{CommandId: "start", Command: &kartav1.ConverseRequest_StartTurn{
		StartTurn: startTurn("", text),
	}})
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return tool, final, nil
		}
		if err != nil {
			return "", "", err
		}
		if failure := response.GetCommandResult().GetError(); failure != nil {
			return "", "", fmt.Errorf("%s: %s", failure.GetReason(), failure.GetMessage())
		}
		for _, event := range response.GetFrame().GetEvents() {
			switch kind := event.GetKind().(type) {
			case *kartav1.Event_InputRequired:
				asked := kind.InputRequired.GetInputRequest()
				tool = asked.GetToolName()
				send(&kartav1.ConverseRequest{CommandId: "allow", Command: &kartav1.ConverseRequest_Respond{
					Respond: allow(asked.GetInputRequestId()),
				}})
			case *kartav1.Event_MessageCompleted:
				final = kind.MessageCompleted.GetText()
			case *kartav1.Event_TurnFinished:
				if err := completed(kind.TurnFinished); err != nil {
					return "", "", err
				}
				if err := stream.CloseSend(); err != nil {
					return "", "", err
				}
			}
		}
	}
}

// watchWithACut reads the log, loses the stream in the middle, and goes on behind the last event that it has handled.
func (c client) watchWithACut(ctx context.Context, sessionID string) ([]uint64, error) {
	got, err := c.sessions.GetSession(ctx, &kartav1.GetSessionRequest{SessionId: sessionID})
	if err != nil {
		return nil, err
	}
	end := got.GetSession().GetLatestSequence()
	var sequences []uint64
	var last uint64
	for _, until := range []uint64{end / 2, end} {
		err := c.watch(ctx, sessionID, last, func(event *kartav1.Event) bool {
			last = event.GetSequence()
			sequences = append(sequences, last)
			return last < until
		})
		if err != nil {
			return nil, err
		}
	}
	return sequences, nil
}

// watch hands on the events behind a sequence until handle returns false; then it cuts the stream.
func (c client) watch(ctx context.Context, sessionID string, after uint64, handle func(*kartav1.Event) bool) error {
	ctx, cut := context.WithCancel(ctx)
	defer cut()
	request := &kartav1.WatchSessionRequest{SessionId: sessionID, AfterSequence: after, Follow: true}
	stream, err := c.sessions.WatchSession(ctx, request)
	if err != nil {
		return err
	}
	for {
		frame, err := stream.Recv()
		if err != nil {
			return err
		}
		for _, event := range frame.GetEvents() {
			if !handle(event) {
				return nil
			}
		}
	}
}

func startTurn(sessionID, text string) *kartav1.StartTurnRequest {
	part := &kartav1.Part{Content: &kartav1.Part_Text{Text: text}}
	return &kartav1.StartTurnRequest{SessionId: sessionID, Message: &kartav1.Message{Parts: []*kartav1.Part{part}}}
}

func allow(inputRequestID string) *kartav1.RespondToInputRequest {
	return &kartav1.RespondToInputRequest{
		InputRequestId: inputRequestID,
		Response:       &kartav1.InputResponse{Choice: &kartav1.InputResponse_Allow{Allow: &kartav1.Allow{}}},
	}
}

func completed(finished *kartav1.TurnFinished) error {
	if finished.GetState() != kartav1.TurnState_TURN_STATE_COMPLETED {
		return fmt.Errorf("the turn ended as %s: %s", finished.GetState(), finished.GetError().GetMessage())
	}
	return nil
}

// errorInfo returns what Karta says about a failed call, or nil.
func errorInfo(err error) *errdetails.ErrorInfo {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == "karta.sh" {
			return info
		}
	}
	return nil
}

// contiguous says whether the sequences are 1, 2, 3, …
func contiguous(sequences []uint64) bool {
	for index, sequence := range sequences {
		if sequence != uint64(index)+1 {
			return false
		}
	}
	return true
}
