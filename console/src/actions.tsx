import type { JSX } from "preact";
import { useState } from "preact/hooks";
import { isProblem, type Message, type Session } from "../../clients/typescript/src/index.js";
import { access } from "./access.js";
import { ActionDialog } from "./dialog.js";
import { notice } from "./notice.js";
import { href } from "./router.js";
import { counted, Id } from "./text.js";

interface SessionActionProps {
  session: Session;
  onDone(session: Session): void;
  onClose(): void;
}

export function RetitleDialog({ session, onDone, onClose }: SessionActionProps): JSX.Element {
  const [title, setTitle] = useState(session.title ?? "");
  const run = async () => {
    onDone(await access.client.updateSession(session.sessionId, { title: title || null }));
    notice.show("The title is changed");
  };
  return (
    <ActionDialog title="Change the title" verb="Change" run={run} onClose={onClose}>
      <label>
        Title
        <input
          value={title}
          onInput={(event) => setTitle(event.currentTarget.value)}
          maxLength={200}
          autofocus
          autocomplete="off"
        />
      </label>
    </ActionDialog>
  );
}

export function EndDialog({ session, onDone, onClose }: SessionActionProps): JSX.Element {
  const run = async () => {
    onDone(await access.client.endSession(session.sessionId));
    notice.show("The session is ended");
  };
  return (
    <ActionDialog title="End the session" verb="End" run={run} onClose={onClose}>
      <p>
        The user's next message starts a new session. A reply that is being written is closed as interrupted. An ended
        session can be resumed.
      </p>
    </ActionDialog>
  );
}

export function ResumeDialog({ session, onDone, onClose }: SessionActionProps): JSX.Element {
  const [other, setOther] = useState<string | null>(null);
  const run = async () => {
    try {
      const options = other ? { ifActive: "replace" as const } : {};
      onDone(await access.client.resumeSession(session.sessionId, options));
    } catch (error) {
      if (isProblem(error, "another_session_active")) setOther(error.problem.activeSessionId ?? "");
      throw error;
    }
    notice.show("The session is resumed");
  };
  return (
    <ActionDialog
      title="Resume the session"
      verb={other === null ? "Resume" : "End the other one and resume"}
      run={run}
      onClose={onClose}
    >
      <p>It becomes the user's active session again.</p>
      {other && (
        <p>
          The user has another active session: <a href={href.session(other)}>{other}</a>
        </p>
      )}
    </ActionDialog>
  );
}

export function DeleteDialog({ session, onClose }: Omit<SessionActionProps, "onDone">): JSX.Element {
  // Deletes only the version that is shown, not a version that somebody has changed in the meantime.
  const [ifVersion] = useState(session.version);
  const run = async () => {
    await access.client.deleteSession(session.sessionId, { ifVersion });
    notice.show("The session is deleted");
    location.hash = href.user(session.businessId, session.userId);
  };
  const { sessionId } = session;
  return (
    <ActionDialog title="Delete the session" verb="Delete" typed={sessionId} isDestructive run={run} onClose={onClose}>
      <p>Deletes the session and its {counted(session.messageCount, "message")}. This cannot be undone.</p>
    </ActionDialog>
  );
}

interface RedactProps {
  message: Message;
  onDone(): void;
  onClose(): void;
}

export function RedactDialog({ message, onDone, onClose }: RedactProps): JSX.Element {
  const { sessionId, messageId, seq } = message;
  const run = async () => {
    await access.client.redactMessage(sessionId, messageId);
    notice.show(`Message ${seq} is redacted`);
    onDone();
  };
  return (
    <ActionDialog title="Redact the message" verb="Redact" typed={messageId} isDestructive run={run} onClose={onClose}>
      <p>
        Removes the content and the metadata of message {seq}. Its number, role and time stay. This cannot be undone.
      </p>
    </ActionDialog>
  );
}

interface EraseProps {
  businessId: string;
  userId: string;
  onDone(): void;
  onClose(): void;
}

export function EraseDialog({ businessId, userId, onDone, onClose }: EraseProps): JSX.Element {
  const run = async () => {
    const { deletedSessions } = await access.client.eraseUser(businessId, userId);
    notice.show(`${counted(deletedSessions, "session")} erased`);
    onDone();
  };
  return (
    <ActionDialog title="Erase the user" verb="Erase" typed={userId} isDestructive run={run} onClose={onClose}>
      <p>
        Erases every session and message of <Id>{userId}</Id> in <Id>{businessId}</Id>. This cannot be undone.
      </p>
    </ActionDialog>
  );
}
