# What the machine may do, and nothing else. No action has a wildcard; Resource "*" stands only where AWS knows no narrower one, and says so.

locals {
  statements = concat([
    { Sid = "ListStorage", Effect = "Allow", Action = ["s3:ListBucket", "s3:GetBucketLocation"], Resource = [var.bucket_arn] },
    {
      Sid      = "UseStorage"
      Effect   = "Allow"
      Action   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
      Resource = ["${var.bucket_arn}/storage/*"]
    },
    { Sid = "UseKey", Effect = "Allow", Action = ["kms:Decrypt", "kms:GenerateDataKey"], Resource = [var.key_arn] },
    # AWS: GetAuthorizationToken supports no resource; it gives a login, and what the login may do is the next statement.
    { Sid = "LogInToRegistry", Effect = "Allow", Action = ["ecr:GetAuthorizationToken"], Resource = ["*"] },
    {
      Sid    = "UseRegistry"
      Effect = "Allow"
      Action = [
        "ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:CompleteLayerUpload", "ecr:DescribeImages", "ecr:GetDownloadUrlForLayer", "ecr:InitiateLayerUpload", "ecr:PutImage",
        "ecr:UploadLayerPart",
      ]
      Resource = var.repository_arns
    },
    {
      Sid      = "ReadSecrets"
      Effect   = "Allow"
      Action   = ["ssm:GetParametersByPath"]
      Resource = ["arn:${var.aws}:ssm:${var.region}:${var.account}:parameter/${var.name}", "arn:${var.aws}:ssm:${var.region}:${var.account}:parameter/${var.name}/*"]
    },
    # What the SSM agent needs for shells and port forwarding. AWS's own policy for it (AmazonSSMManagedInstanceCore) would also read every parameter of the account. These support no resource.
    {
      Sid      = "BeManagedBySsm"
      Effect   = "Allow"
      Action   = ["ssm:UpdateInstanceInformation", "ssmmessages:CreateControlChannel", "ssmmessages:CreateDataChannel", "ssmmessages:OpenControlChannel", "ssmmessages:OpenDataChannel"]
      Resource = ["*"]
    },
    { Sid = "WriteLogs", Effect = "Allow", Action = ["logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"], Resource = ["${var.log_group_arn}:*"] },
    ], var.release_bucket == "" ? [] : [
    { Sid = "FetchRelease", Effect = "Allow", Action = ["s3:GetObject"], Resource = ["arn:${var.aws}:s3:::${var.release_bucket}/${var.release_key}"] },
  ])
}

resource "aws_iam_role" "machine" {
  name        = "${var.name}-${var.region}-machine"
  description = "health-predict: its storage, images, secrets and logs; a shell by SSM"
  assume_role_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "sts:AssumeRole", Principal = { Service = "ec2.amazonaws.com" } }]
  })
}

resource "aws_iam_role_policy" "machine" {
  name   = "health-predict"
  role   = aws_iam_role.machine.id
  policy = jsonencode({ Version = "2012-10-17", Statement = local.statements })
}

resource "aws_iam_instance_profile" "machine" {
  name = "${var.name}-${var.region}-machine"
  role = aws_iam_role.machine.name
}
